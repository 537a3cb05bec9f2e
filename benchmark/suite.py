"""Suites: which runs a board is made of, as people write them, and as they are frozen.

A plan is a TOML file in ``benchmark/suites``, or one of your own:

    title, text  of the board
    [[table]]
    target       ``DATASET/ARCHITECTURE``; ``{folder}`` in it stands for a folder of images, see `read_plan`
    budgets      queries; each makes a table of its own
    seeds        the attack's
    copies       true where each seed attacks a copy of the target of its own, as boards that rank should have it
    clone        the clones' architecture; without it, what is frozen for each attack
    columns      a line each, ``{attack = SPEC}``, and where they differ: ``recoveries = ["none"]``, and
                 ``role = "ranked"``, ``"floor"`` or ``"reference"``. Upper bounds, which are oracles and attacks that
                 own the target's data, are references, and cannot be anything else
    defenses     specs. One that leaves its knob open enters at every value of its declared sweep

What a table does not say it takes from the table before it. Ranked columns meet every setting of every defense, floors
and references the undefended target alone. `freeze` resolves all of it with the hyperparameters of the day; the
frozen suites that come with the package lie in ``leaderboard/suites``.

torch is imported where something is resolved, and not to put the runs of a frozen suite in order.
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from .. import PROTOCOL
from ..components import format_spec, load_class, parse_spec, split_chain
from ..errors import UnknownName, UsageError
from ..leaderboard import suites
from ..leaderboard.record import ComponentInfo
from ..leaderboard.suites import Column, DefenseEntry, DefenseSetting, Family, FrozenSuite, Role, Setting, Table
from ..targets.reference import digests
from .spec import Cell, Plan, RunSpec, resolve

CONTROLS = ("none", "temperature", "label_only")
"""Rows to compare with; they stand in every table of a board."""

# ------------------------------------------------------------------------------------------------------ plans


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("given twice")
    return values


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ColumnPlan(_Part):
    """An attack under some recoveries, each of which makes a column."""

    attack: str
    recoveries: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_distinct)] = ("none",)
    role: Role | None = None


class TablePlan(_Part):
    """One target under some budgets."""

    target: str
    budgets: Annotated[tuple[PositiveInt, ...], Field(min_length=1), AfterValidator(_distinct)]
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(_distinct)]
    copies: bool = False
    clone: str | None = None
    columns: Annotated[tuple[ColumnPlan, ...], Field(min_length=1)]
    defenses: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_distinct)]


class SuitePlan(_Part):
    """A whole suite, as it is written."""

    title: str
    text: str
    table: Annotated[tuple[TablePlan, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _take_over(cls, data: Any) -> Any:
        """Give each table what it does not say from the one before it."""
        tables = data.get("table") if isinstance(data, dict) else None
        if isinstance(tables, list) and all(isinstance(table, dict) for table in tables):
            for before, after in pairwise(tables):
                after |= before | after
        return data


def packaged() -> list[str]:
    """The names of the suites that come with msbench, sorted."""
    folder = files(__package__).joinpath("suites")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def name_of(suite: str) -> str:
    """The name of a packaged suite, or of a file's."""
    return Path(suite).stem if suite.endswith((".toml", ".json")) else suite


def read_plan(suite: str, folder: str | None = None) -> SuitePlan:
    """A packaged plan by its name, or the plan in a file whose path ends in ``.toml``. Nothing is resolved.

    Args:
        folder: what ``{folder}`` stands for in the suite's targets; it stays as it is where none is given.

    Raises `UnknownName` for a suite that is not there, and `UsageError` for one that cannot be used.
    """
    is_file = suite.endswith(".toml")
    if not is_file and suite not in packaged():
        raise UnknownName("suite", suite, packaged(), hint="a file's name ends in .toml")
    path = Path(suite) if is_file else files(__package__).joinpath("suites", f"{suite}.toml")
    try:
        plan = SuitePlan.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"cannot read the suite {suite}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the suite {suite} is not a TOML file: {error}") from None
    except ValidationError as error:
        raise UsageError(f"the suite {suite} is not usable: {suites.first_reason(error)}") from None
    if folder is None:
        return plan
    placed = [table.model_copy(update={"target": table.target.replace("{folder}", folder)}) for table in plan.table]
    return plan.model_copy(update={"table": tuple(placed)})


# --------------------------------------------------------------------------------------------------- freezing


def freeze(suite: str, folder: str | None = None) -> FrozenSuite:
    """Resolve every setting of a suite, with the hyperparameters of the day.

    No images are read. Raises as `read_plan` and `benchmark.spec.resolve`, and `UsageError` for an upper bound that is
    to be ranked, and for floors and references without an undefended target to run against.
    """
    plan = read_plan(suite, folder)
    tables = [table for each in plan.table for table in _freeze_tables(each)]
    return FrozenSuite(name=name_of(suite), protocol=PROTOCOL, title=plan.title, text=plan.text, tables=tuple(tables))


def load(suite: str, folder: str | None = None) -> FrozenSuite:
    """A frozen suite that comes with msbench, or that lies in a file ending in ``.json``; any other is frozen now.

    Raises as `freeze` and `leaderboard.suites.load_suite`.
    """
    if suite in suites.names() or suite.endswith(".json"):
        return suites.load_suite(suite)
    return freeze(suite, folder)


def _freeze_tables(plan: TablePlan) -> Iterator[Table]:
    """One table for each budget."""
    from ..targets.zoo import parse_target

    if "{folder}" in plan.target:
        raise UsageError(
            f"the target {plan.target} needs a folder of images: msbench sweep and msbench suite take one with "
            "--folder DIR, and every command takes a suite of your own, FILE.toml, with its path in place of {folder}"
        )
    defenses = tuple(map(defense_entry, plan.defenses))
    for budget in plan.budgets:
        asked = RunSpec(target=plan.target, clone=plan.clone, budget=budget)
        columns = tuple(
            freeze_column(asked, column, recovery) for column in plan.columns for recovery in column.recoveries
        )
        if "none" not in plan.defenses and (alone := [each.label for each in columns if each.role != "ranked"]):
            raise UsageError(f"{plan.target}: {', '.join(alone)} need the defense none, against which alone they run")
        target = resolve(asked).info.target
        attacked = plan.seeds if plan.copies else (asked.target_seed,)
        shipped = digests(target.name, target.version)
        yield Table(
            target=target,
            num_classes=parse_target(plan.target).dataset.num_classes,
            budget=budget,
            seeds=plan.seeds,
            copies=plan.copies,
            clone=plan.clone,
            weights={seed: shipped[seed] for seed in attacked if seed in shipped},
            columns=columns,
            defenses=defenses,
        )


def freeze_column(asked: RunSpec, column: ColumnPlan, recovery: str) -> Column:
    """The column with its settings for probabilities and, where they differ, for labels."""
    against = [
        resolve(replace(asked, attack=column.attack, recovery=recovery, defense=defense))
        for defense in ("none", "label_only")
    ]
    role = _role(column, against[0])
    settings = [_setting(plan) for plan in against] if role == "ranked" else [_setting(against[0])]
    return Column(
        attack=column.attack,
        recovery=recovery,
        role=role,
        resolved_recovery=against[0].info.recovery,
        settings=tuple(settings[:1] + [other for other in settings[1:] if other != settings[0]]),
    )


def _setting(plan: Plan) -> Setting:
    info = plan.info
    return Setting(attack=info.attack, clone=info.clone, pool=info.pool, precision=info.precision)


def _role(column: ColumnPlan, plan: Plan) -> Role:
    bound = plan.attack.traits.pool == "target" or plan.recovery.label().startswith("oracle_")
    if bound and column.role not in (None, "reference"):
        raise UsageError(f"{plan.attack} under {plan.recovery} is an upper bound: it is a reference, not {column.role}")
    return column.role or ("reference" if bound else "ranked")


def defense_entry(spec: str) -> DefenseEntry:
    """A defense with all settings that it enters a suite with: those of its sweep, unless it sets its knob itself.

    Raises as `defenses.base.load_defense`.
    """
    from ..defenses.base import load_defense
    from .cli.wording import citation, summary

    whole = load_defense(spec)
    classes = [load_class("defense", parse_spec(link)[0]) for link in split_chain(spec)]
    settings = {each: load_defense(each) for each in _sweep(spec, whole.traits.knob, whole.traits.sweep)}
    return DefenseEntry(
        name=spec,
        family=_family(spec, whole.traits),
        summary=" Then: ".join(map(summary, classes)),
        citation="; ".join(filter(None, (citation(cls.paper) for cls in classes))),
        knob=whole.traits.knob,
        preserves=whole.traits.preserves,
        weakness=whole.traits.weakness,
        needs=whole.traits.needs,
        argmax_preserving=all(each.traits.argmax_preserving for each in settings.values()),
        stochastic=any(each.traits.stochastic for each in settings.values()),
        settings=tuple(
            DefenseSetting(
                spec=each, resolved=ComponentInfo(**defense.describe()), labels_only=defense.traits.labels_only
            )
            for each, defense in settings.items()
        ),
    )


def _sweep(spec: str, knob: str | None, values: Iterable[Any]) -> list[str]:
    """The specs of a sweep, weakest first; the spec alone where there is nothing to sweep."""
    if knob is None:  # so it is for a chain, which is more than one name with parameters
        return [spec]
    name, params = parse_spec(spec)
    if knob in params:
        return [spec]
    return [format_spec(name, params | {knob: value}) for value in values]


def _family(spec: str, traits: Any) -> Family:
    from .cli.wording import family

    links = split_chain(spec)
    control = len(links) == 1 and parse_spec(links[0])[0] in CONTROLS
    return "control" if control else cast(Family, family(traits))


def with_defense(suite: FrozenSuite, spec: str) -> FrozenSuite:
    """The suite with one more defense in each of its tables, at its declared sweep."""
    entry = defense_entry(spec)
    tables = (table.model_copy(update={"defenses": (*table.defenses, entry)}) for table in suite.tables)
    return suite.model_copy(update={"tables": tuple(tables)})


# ------------------------------------------------------------------------------------------------------- runs


def plans(suite: FrozenSuite, targets: Mapping[str, str] | None = None) -> list[Cell]:
    """Every run of a suite once, in the order due: seed by seed, and of a seed the undefended target first.

    Args:
        targets: how targets that records know by another name are asked for on this machine, see `asked_targets`.
    """
    ranked: list[tuple[tuple[int, bool], Cell]] = []
    for table in suite.tables:
        target = (targets or {}).get(table.target.name, table.target.name)
        for column, entry, setting in table.cells():
            for position, seed in enumerate(table.seeds):
                info = table.spec(suite.protocol, column, entry, setting, seed)
                request = RunSpec(
                    target=target,
                    defense=setting.spec,
                    attack=column.attack,
                    recovery=column.recovery,
                    budget=info.budget,
                    seed=seed,
                    defense_seed=info.defense_seed,
                    target_seed=info.target_seed,
                    clone=info.clone,
                    precision=info.precision,
                )
                ranked.append(((position, entry.name != "none"), Cell(request=request, info=info)))
    ranked.sort(key=lambda item: item[0])
    return list({cell.run_id: cell for _, cell in ranked}.values())


def asked_targets(suite: str, folder: str | None) -> dict[str, str]:
    """For each target that lies in ``folder``: its name in records, and how it is asked for here."""
    if folder is None:
        return {}
    placed = (table.target for table in read_plan(suite, folder).table)
    return {resolve(RunSpec(target=target)).info.target.name: target for target in placed if folder in target}


def check(cell: Cell) -> None:
    """Raise `UsageError` if what is run today under a cell's names is not what the suite froze."""
    today = resolve(cell.request).info
    if (found := Cell(request=cell.request, info=today).run_id) == cell.run_id:
        return
    mine, theirs = cell.info.model_dump(mode="json"), today.model_dump(mode="json")
    differs = ", ".join(key for key in mine if mine[key] != theirs[key])
    raise UsageError(
        f"run {cell.run_id} is frozen otherwise than it would be run today, as {found}: {differs} differ; the suite "
        "belongs to another version of msbench, or has to be frozen again"
    )
