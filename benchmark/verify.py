"""Running a record's run again, from nothing but the record and the code that it names."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..components import format_spec, links_of, load_class, parse_spec
from ..errors import MsbenchError, UsageError
from ..leaderboard.consistency import LEARNS_FROM
from ..leaderboard.record import Record
from ..leaderboard.store import Store
from ..leaderboard.verification import Verdict, cell_of, judge
from .runner import run
from .spec import Plan, RunSpec, resolve

if TYPE_CHECKING:
    from ..attacks.base import Attack

FRESH_SEEDS = 1_000_000
"""Seeds from here on are nobody's: a verification draws its own."""


def verify(
    record: Record, *, times: int = 1, code: Path | None = None, seeds: list[Record] | None = None, **options: Any
) -> Verdict:
    """Run a record's run again and compare.

    Args:
        times: how often; the first time under the record's own seed, then under fresh ones, which tell how far seeds
            spread. Where this machine has trained other weights than the record's, each of these attacks a copy of
            the target of its own, for then copies differ as well; a defense that draws or learns does so anew.
        code: folder of the files that the record names, ``file.py:Class``.
        seeds: records of other seeds of the same cell that are at hand.
        options: those of `runner.run`: ``data_dir``, ``device``, …

    Raises `UsageError` for a record that is not done, and for code that is not the record's; `MsbenchError` if the run
    fails here.
    """
    if record.status != "done":
        raise UsageError(f"run {record.run_id} is {record.status}: there is nothing to compare with")
    request = request_of(record, code)
    plan = resolve(request)
    if plan.run_id != record.run_id:
        raise UsageError(f"what is here is not what the record ran: {_apart(record, plan)}")
    again = _again(request, options)
    traits = plan.defense.traits
    seeded = traits.stochastic or not LEARNS_FROM.isdisjoint(traits.needs)
    fresh = [
        _again(_of_seed(request, seed, seeded=seeded, copies=_weights(again) != _weights(record)), options)
        for seed in range(FRESH_SEEDS, FRESH_SEEDS + times - 1)
    ]
    known = [each for each in seeds or [] if each.status == "done" and cell_of(each) == cell_of(record)]
    return judge(record, again, fresh=fresh, beside=known, constant=not (seeded or traits.stateful))


def request_of(record: Record, code: Path | None) -> RunSpec:
    """What would have to be asked for to get this run, with every hyperparameter written out."""
    spec = record.spec
    attack = _written(spec.attack.name, spec.attack.params, code)
    takes_pool = cast("type[Attack]", load_class("attack", parse_spec(attack)[0])).traits.pool == "unrelated"
    if "sha256" in spec.target.params:
        raise UsageError("the record's target is a checkpoint of somebody's, which a record does not hold")
    return RunSpec(
        target=spec.target.name,
        defense="+".join(_written(*link, code) for link in links_of(spec.defense.name, spec.defense.params)),
        attack=attack,
        recovery=_written(spec.recovery.name, spec.recovery.params, code),
        budget=spec.budget,
        seed=spec.seed,
        defense_seed=spec.defense_seed,
        target_seed=spec.target_seed,
        clone=spec.clone,
        pool=spec.pool if takes_pool else None,
        precision=spec.precision,
    )


def components_of(record: Record) -> set[str]:
    """The names of all that a run is made of, whose code is loaded where it is done again."""
    spec = record.spec
    links = (name for name, _ in links_of(spec.defense.name, spec.defense.params))
    return {*links, spec.attack.name, spec.recovery.name}


def _of_seed(request: RunSpec, seed: int, *, seeded: bool, copies: bool) -> RunSpec:
    return replace(
        request,
        seed=seed,
        defense_seed=seed if seeded or request.defense_seed else 0,
        target_seed=seed if copies else request.target_seed,
    )


def _weights(record: Record) -> str:
    return record.target.digest if record.target else ""


def _written(name: str, params: Mapping[str, Any], code: Path | None) -> str:
    if ".py:" in name:
        if code is None:
            raise UsageError(f"the record ran {name}: say with --code which folder the file lies in")
        name = str(code / name)
    return format_spec(name, params)


def _apart(record: Record, plan: Plan) -> str:
    there, here = record.spec.model_dump(mode="json"), plan.info.model_dump(mode="json")
    return "; ".join(f"{key} is {there[key]} there, {here[key]} here" for key in there if there[key] != here[key])


def _again(request: RunSpec, options: dict[str, Any]) -> Record:
    with _scratch() as store:
        record = run(request, store=store, **options)
    if record.error is not None:
        raise MsbenchError(f"the run fails here: {record.error.type}: {record.error.message}")
    return record


@contextmanager
def _scratch() -> Iterator[Store]:
    """A store in which nothing is found."""
    with tempfile.TemporaryDirectory(prefix="msbench-verify-") as folder:
        yield Store(folder)
