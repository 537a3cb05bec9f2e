"""A suite as the leaderboard knows it: which runs count, with every setting resolved and frozen.

The TOML files in ``benchmark/suites`` say what people wrote; ``msbench suite freeze`` resolves them, with the
hyperparameters of the day, into the JSON files in ``leaderboard/suites``, which are read here without torch. A record
counts for a table only if its spec is one that the frozen suite holds: another learning rate, clone or budget is
another experiment. A frozen suite belongs to one version of the protocol and is not changed within it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import UnknownName, UsageError
from .record import ComponentInfo, SpecInfo, copy_of

FOLDER = Path(__file__).parent / "suites"
"""Where the frozen suites lie, one ``NAME.json`` each."""

Family = Literal["control", "deterministic", "randomized", "stateful", "training", "detection", "deterrent"]
"""Which of the board's tables a defense stands in. Controls (``none``, ``temperature``, ``label_only``) are in all."""

Role = Literal["ranked", "floor", "reference"]
"""``ranked`` columns make the worst case. ``floor`` is what the attacker gets without asking the victim.
``reference`` columns are shown and never ranked: oracles, and attacks that own the target's training data."""


def column_label(attack: str, recovery: str) -> str:
    """An attack with its recovery, as every table names it."""
    return attack if recovery == "none" else f"{attack} + {recovery}"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Setting(_Part):
    """How one attack is run: its hyperparameters, clone, pool and precision, as they stand in a record's spec."""

    attack: ComponentInfo
    clone: str
    pool: str | None
    precision: Literal["fp32", "bf16"]


class Column(_Part):
    """One way of attacking that every defense of the table meets."""

    attack: str
    """As the suite's author wrote it: ``dualstudent``, ``knockoff:strategy=adaptive``."""
    recovery: str
    """As written: ``none``, ``averaging:repeats=4``."""
    role: Role
    resolved_recovery: ComponentInfo
    settings: Annotated[tuple[Setting, ...], Field(min_length=1)]
    """The frozen settings: those for answers that are probabilities, then, where they differ, those for labels."""

    @property
    def label(self) -> str:
        """Attack and recovery, in a table's head."""
        return column_label(self.attack, self.recovery)

    def setting_for(self, defense: "DefenseSetting") -> Setting:
        """The one setting with which this defense is to be attacked; any other is another experiment."""
        return self.settings[-1 if defense.labels_only else 0]


class DefenseSetting(_Part):
    """One setting of a defense's declared sweep."""

    spec: str
    """As it would be typed: ``topk:k=3``."""
    resolved: ComponentInfo
    labels_only: bool = False
    """Whether its answers are labels, to which some attacks have settings of their own."""


class DefenseEntry(_Part):
    """A defense with all settings that it enters with."""

    name: str
    family: Family
    summary: str
    """One sentence on what it does."""
    citation: str
    """``Orekondy et al. 2020, arXiv 1906.10908``; empty without a paper."""
    knob: str | None
    """The hyperparameter that the sweep varies."""
    preserves: str
    weakness: str
    needs: tuple[str, ...]
    """Declared access beyond probabilities and images."""
    argmax_preserving: bool
    """Declared: the released top class is always the target's. Such a defense cannot beat ``label_only``."""
    stochastic: bool
    settings: Annotated[tuple[DefenseSetting, ...], Field(min_length=1)]
    """Weakest first."""


class Table(_Part):
    """One target under one budget: every defense setting against every column, with every seed."""

    target: ComponentInfo
    num_classes: Annotated[int, Field(ge=2)]
    budget: Annotated[int, Field(ge=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    """The attack's seeds; a stochastic defense takes the same number as its own, others 0."""
    copies: bool = False
    """Whether each seed attacks a copy of the target of its own, the one trained with that seed. How much is stolen
    depends on the copy as well as on the attack's seed: without copies, intervals speak of one set of weights."""
    weights: dict[int, str] = {}
    """Of each copy's seed, the SHA-256 of the weights that are attacked, as far as they come with msbench. The others
    are trained where they are attacked, and are not quite the same everywhere."""
    clone: str | None = None
    """The architecture that the suite has all clones of; without it, each attack has its own."""
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]
    defenses: Annotated[tuple[DefenseEntry, ...], Field(min_length=1)]

    def cells(self) -> Iterator[tuple[Column, DefenseEntry, DefenseSetting]]:
        """What meets what: ranked columns every setting of every defense, the others the undefended target alone."""
        for entry in self.defenses:
            for setting in entry.settings:
                for column in self.columns:
                    if column.role == "ranked" or entry.name == "none":
                        yield column, entry, setting

    def spec(self, protocol: str, column: Column, entry: DefenseEntry, setting: DefenseSetting, seed: int) -> SpecInfo:
        """The spec of one run, which is exactly what its record must hold to count."""
        how = column.setting_for(setting)
        return SpecInfo(
            protocol=protocol,
            target=copy_of(self.target, seed) if self.copies else self.target,
            defense=setting.resolved,
            attack=how.attack,
            recovery=column.resolved_recovery,
            clone=how.clone,
            pool=how.pool,
            budget=self.budget,
            seed=seed,
            defense_seed=seed if entry.stochastic else 0,
            precision=how.precision,
        )


class FrozenSuite(_Part):
    """A whole suite."""

    name: str
    protocol: str
    title: str
    text: str
    tables: Annotated[tuple[Table, ...], Field(min_length=1)]


def names() -> list[str]:
    """The frozen suites there are, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_suite(name: str) -> FrozenSuite:
    """Read a frozen suite by name, or from a path that ends in ``.json``.

    Raises `UnknownName` for a name that is not there, and `UsageError` for a file that is not usable.
    """
    path = Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"
    if not path.is_file():
        raise UnknownName("suite", name, names())
    try:
        return FrozenSuite.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UsageError(f"the suite {path} is not usable: {first_reason(error)}") from None


def first_reason(error: ValidationError) -> str:
    """The first thing that is wrong with a file, in one line."""
    first = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def suite_text(suite: FrozenSuite) -> str:
    """The canonical text of a frozen suite: sorted keys, two spaces, one newline at the end."""
    return json.dumps(suite.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False) + "\n"
