"""The grid that one ``msbench run`` asks for: its axes multiplied, resolved, and looked up in the store."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from .values import expand, expand_target

if TYPE_CHECKING:
    from ...attacks.base import Attack
    from ...leaderboard.store import Store
    from ..spec import Cell, Plan, Precision, RunSpec

State = Literal["cached", "unfinished", "pending"]


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What to multiply, as it was asked for: names may hold wildcards."""

    target: tuple[str, ...]
    defense: tuple[str, ...]
    attack: tuple[str, ...]
    recovery: tuple[str, ...]
    budget: tuple[int, ...]
    seed: tuple[tuple[int, ...], ...]
    defense_seed: tuple[tuple[int, ...], ...]
    target_seed: tuple[tuple[int, ...], ...]
    clone: str | None
    pool: str | None
    precision: "Precision"
    checkpoint: Path | None

    def specs(self) -> "Iterator[RunSpec]":
        """Every cell, the last axis running fastest."""
        from ..spec import RunSpec

        axes: dict[str, list[Any]] = {
            "target": _flat(map(expand_target, self.target)),
            "defense": _flat(expand("defense", spec) for spec in self.defense),
            "attack": _flat(expand("attack", spec) for spec in self.attack),
            "recovery": _flat(expand("recovery", spec) for spec in self.recovery),
            "budget": list(self.budget),
            "seed": _flat(self.seed),
            "defense_seed": _flat(self.defense_seed),
            "target_seed": _flat(self.target_seed),
        }
        # If no attack takes a pool, each gets it all the same, and refuses it.
        takers = set(filter(_takes_pool, axes["attack"])) or set(axes["attack"])
        for cell in product(*axes.values()):
            chosen = dict(zip(axes, cell, strict=True))
            yield RunSpec(
                **chosen,
                clone=self.clone,
                pool=self.pool if chosen["attack"] in takers else None,
                precision=self.precision,
                checkpoint=self.checkpoint,
            )


def resolve_all(axes: Axes) -> "list[Plan]":
    """Decide every cell before any is run, so that a typo in the last one does not cost an hour.

    Cells that come to the same run are one. Raises as `benchmark.spec.resolve`.
    """
    from ..spec import resolve

    plans = {plan.run_id: plan for plan in map(resolve, axes.specs())}
    return list(plans.values())


def state_of(plan: "Cell", store: "Store", *, force: bool) -> State:
    """Whether a run is done already, can be continued, or is still to do."""
    record = store.get(plan.info)
    if record is not None and record.status == "done" and not force:
        return "cached"
    return "unfinished" if store.state_path(plan.run_id, forced=force).exists() else "pending"


def describe(plan: "Cell") -> dict[str, Any]:
    """A cell in short, as specs that could be typed again."""
    request = plan.request
    return {
        "run_id": plan.run_id,
        "target": request.target,
        "defense": request.defense,
        "attack": request.attack,
        "recovery": request.recovery,
        "budget": request.budget,
        "seed": request.seed,
        "defense_seed": request.defense_seed,
        "target_seed": request.target_seed,
    }


def _takes_pool(attack: str) -> bool:
    from ...components import load_class, parse_spec

    cls = cast("type[Attack]", load_class("attack", parse_spec(attack)[0]))
    return cls.traits.pool == "unrelated"


def _flat(parts: Iterable[Iterable[Any]]) -> list[Any]:
    return list(dict.fromkeys(chain.from_iterable(parts)))
