"""From what a user asks for to what is run: the resolved spec, whose hash is the run's identity.

Hyperparameters come from three places: what the user wrote, then what the benchmark froze for this data set and
attack (``hyperparameters.toml``, found by the search that its comments name), then the component's own defaults
(its paper's). What is frozen may differ for answers that are labels. The record holds the outcome in full.
"""

import copy
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from .. import PROTOCOL
from ..components import load_class, parse_spec
from ..errors import UsageError
from ..leaderboard.record import ComponentInfo, SpecInfo, run_id

if TYPE_CHECKING:
    from torch import Tensor

    from ..attacks.base import Attack
    from ..attacks.recovery.base import Recovery
    from ..defenses.base import Defense
    from ..targets.datasets.base import Dataset

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a user asks for. `resolve` fills in what was left open."""

    target: str = "digits/lenet5"
    """``DATASET/ARCHITECTURE``."""
    defense: str = "none"
    """A defense, or several joined by ``+``."""
    attack: str = "dualstudent"
    recovery: str = "none"
    budget: int = 60_000
    """Queries allowed; one query is one image."""
    seed: int = 0
    """The attack's seed."""
    defense_seed: int = 0
    target_seed: int = 0
    """Which copy of the target is attacked: the seed that it is trained with."""
    clone: str | None = None
    """Architecture of the clone; None takes the frozen one."""
    pool: str | None = None
    """Data set that an attack with a pool queries with; None takes the target data set's declared one."""
    precision: Precision = "auto"
    checkpoint: Path | None = None
    """Weights of the target, instead of training one."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A run with everything decided: what was asked for, and the spec that goes into the record."""

    request: RunSpec
    info: SpecInfo

    @cached_property
    def run_id(self) -> str:
        """The run's identity."""
        return run_id(self.info)


@dataclass(frozen=True, kw_only=True)
class Plan(Cell):
    """A run that could begin: its components as well."""

    defense: "Defense"
    attack: "Attack"
    recovery: "Recovery"
    pool: "Dataset | None"


@cache
def frozen() -> Mapping[str, Any]:
    """The frozen hyperparameters, by data set and attack; the file's comments say how they are written."""
    text = files(__package__).joinpath("hyperparameters.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


_OWN = {"data", "auxiliary"}
"""Needs of a defense that are withheld from an attacker who rebuilds it."""


def resolve(request: RunSpec) -> Plan:
    """Decide everything that determines the run. Trains nothing and reads no images.

    Raises the subclasses of `UsageError` for unknown names, unknown or ill-typed parameters, a budget below one, a
    recovery that would have to rebuild what cannot be rebuilt, and a checkpoint or a folder of images that is not
    there.
    """
    from ..defenses.base import load_defense
    from ..targets.architectures import check_architecture
    from ..targets.zoo import describe_target, parse_target

    if request.budget < 1:
        raise UsageError(f"budget {request.budget} is not usable: an attack needs at least 1 query")
    if (lowest := min(request.seed, request.defense_seed, request.target_seed)) < 0:
        raise UsageError(f"seed {lowest} is not usable: seeds start at 0")
    name = parse_target(request.target)
    target = describe_target(request.target, request.checkpoint, request.target_seed)
    attack_name, attack_params = parse_spec(request.attack)
    attack_class = cast("type[Attack]", load_class("attack", attack_name))
    defense = load_defense(request.defense)
    recovery_name, recovery_params = parse_spec(request.recovery)
    recovery = cast("Recovery", load_class("recovery", recovery_name).from_params(recovery_params))
    labels = attack_class.traits.access != "labels" and answers_labels(defense, recovery)
    settings = frozen_for(name.dataset.label(), request.attack, labels=labels)
    attack = attack_class.from_params(settings.get("params", {}) | attack_params)
    if request.budget < recovery.queries_per_image:
        raise UsageError(
            f"budget {request.budget} is not usable: one image costs {recovery.queries_per_image} queries "
            f"under {recovery}"
        )
    if "clean answers" in recovery.traits.knows and not recovery.label().startswith("oracle_"):
        raise UsageError(
            f"recovery {recovery.label()!r} is told clean answers, so its name must begin with 'oracle_': "
            "upper bounds are never ranked, and are known by their names"
        )
    if "defense" in recovery.traits.knows and (own := _OWN.intersection(defense.traits.needs)):
        raise UsageError(
            f"recovery {recovery.label()!r} needs the defense rebuilt, but no attacker can rebuild {defense}, which is "
            f"made from what only its owner has ({', '.join(sorted(own))}): take a recovery that does not"
        )
    clone = request.clone or settings.get("clone") or name.architecture
    check_architecture(clone)
    pool = _pool(request, attack, name.dataset)
    info = SpecInfo(
        protocol=PROTOCOL,
        target=ComponentInfo(**target),
        defense=ComponentInfo(**defense.describe()),
        attack=ComponentInfo(**attack.describe()),
        recovery=ComponentInfo(**recovery.describe()),
        clone=clone,
        pool=pool.identity() if pool else None,
        budget=request.budget,
        seed=request.seed,
        defense_seed=request.defense_seed,
        precision=_precision(request.precision),
    )
    return Plan(request=request, defense=defense, attack=attack, recovery=recovery, pool=pool, info=info)


def frozen_for(dataset: str, attack: str, *, labels: bool = False) -> dict[str, Any]:
    """What is frozen for an attack on targets of a data set: ``clone`` and ``params``, either may be absent.

    The clone is the attack's own, or else the one that the data set has for all attacks.

    Args:
        dataset: the data set's name.
        attack: the attack's spec. Among what is frozen for its name and for variants of it, such as
            ``knockoff:strategy=adaptive``, the one that shares most of the spec's parameters, and has no other, holds.
        labels: whether an attack that could use probabilities gets labels; the settings for that, where there are
            any, take the place of those for probabilities as a whole.
    """
    name, written = parse_spec(attack)
    entries = dict(frozen().get(dataset, {}))
    common = {"clone": entries.pop("clone")} if "clone" in entries else {}
    found: Mapping[str, Any] = {}
    most = -1
    for variant, entry in entries.items():
        its_name, its_params = parse_spec(variant)
        if its_name == name and its_params.items() <= written.items() and len(its_params) > most:
            found, most = entry, len(its_params)
    chosen = found.get("labels", found) if labels else found
    return common | {key: value for key, value in chosen.items() if key != "labels"}


def answers_labels(defense: "Defense", recovery: "Recovery") -> bool:
    """Whether a defense's answers, seen through a recovery, are labels by declaration.

    It is the question that attacks ask of their victim, put to an interface that answers nothing.
    """
    from ..targets.blackbox import BlackBox

    def closed(_: "Tensor") -> "Tensor":
        raise RuntimeError("this black box only declares what its answers are")

    interface = BlackBox(closed, budget=1, num_classes=1, image_shape=(1, 1, 1), labels_only=defense.traits.labels_only)
    return copy.copy(recovery).wrap(interface).labels_only


def _pool(request: RunSpec, attack: "Attack", dataset: "Dataset") -> "Dataset | None":
    """The data set whose training images the attack may query with, as its traits grant."""
    from ..targets.datasets.loading import load_dataset

    if attack.traits.pool != "unrelated":
        if request.pool is not None:
            raise UsageError(f"attack {attack.label()} is {attack.traits.threat_model}: it takes no --pool")
        return dataset if attack.traits.pool == "target" else None
    pool = request.pool or dataset.pool
    if pool is None:
        raise UsageError(
            f"attack {attack.label()} queries with images of its own, and {request.target!r} declares no pool: "
            "name one with --pool DATASET"
        )
    return load_dataset(pool)


def _precision(asked: Precision) -> Literal["fp32", "bf16"]:
    return "fp32" if asked == "auto" else asked
