"""The runs behind the pages of documentation: read from a plan, put in order, and shown from their records.

A plan is a TOML file beside this one. Its sections stand in the order of importance, and a section's runs are due
seed by seed: an interrupted campaign has the first seed of everything before the second of anything.

    title, text             of the page
    [[section]]
    name, title, text       the name is for the command line
    target, budgets, seeds  in the order in which they are due
    pool                    another data set for attacks with a pool than the target's own
    cells                   a page of attacks: a line each, ``{attack = SPEC}`` and, where they are not ``none``,
                            ``defense`` and ``recovery``; ``seeds`` of its own; ``published`` as figure, setting and
                            source; a ``note``
    defenses                a page of defenses: a line each, ``{defense = SPEC}`` and, where there is one,
                            ``recovery``, the one made for it; a ``note``. Each is run against all of the section's
                            ``attacks`` under all of its ``recoveries``, and under the defense's own. A section
                            that names no defenses takes those of the section before it
    sweep = true            takes each defense at all values of its knob instead, without its own recovery
"""

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise, zip_longest
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from ...components import format_spec, parse_spec
from ...defenses.base import load_defense
from ...errors import UnknownName, UsageError
from ...leaderboard.consistency import LEARNS_FROM
from ...leaderboard.page_sections import AttackRow, AttackSection, DefenseRow, DefenseSection
from ...leaderboard.pages import Page, Runs, Section, render
from ...leaderboard.store import Store
from ...leaderboard.suites import column_label
from ..cli.wording import family
from ..spec import Cell, RunSpec, resolve

# ------------------------------------------------------------------------------------------------------ plans


def _distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) < len(values):
        raise ValueError("given twice")
    return values


Numbers = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(_distinct)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Published(_Part):
    """A figure from elsewhere, which says nothing without its setting and its source."""

    figure: str
    setting: str
    source: str

    def __str__(self) -> str:
        return f"{self.figure} ({self.setting}; {self.source})"


class CellPlan(_Part):
    """One row of a page of attacks."""

    attack: str
    defense: str = "none"
    recovery: str = "none"
    seeds: Numbers | None = None
    published: Published | None = None
    note: str = ""


class DefensePlan(_Part):
    """One row of a page of defenses."""

    defense: str
    recovery: str | None = None
    note: str = ""


class SectionPlan(_Part, ABC):
    """What sections of both kinds say."""

    name: str
    title: str
    text: str = ""
    target: str
    pool: str | None = None
    budgets: Numbers
    seeds: Numbers

    @abstractmethod
    def resolved(self, campaign: "Campaign") -> Section:
        """The section with its runs, which become part of the campaign. Raises as `benchmark.spec.resolve`."""


class AttackSectionPlan(SectionPlan):
    """A section of a page of attacks."""

    cells: tuple[CellPlan, ...]

    def resolved(self, campaign: "Campaign") -> Section:
        """A row each cell and budget."""
        rows = [
            AttackRow(
                runs=campaign.add(self, cell.attack, cell.defense, cell.recovery, budget, cell.seeds or self.seeds),
                published=str(cell.published or ""),
                note=cell.note,
            )
            for budget in self.budgets
            for cell in self.cells
        ]
        return AttackSection(name=self.name, title=self.title, text=self.text, rows=rows)


class DefenseSectionPlan(SectionPlan):
    """A section of a page of defenses."""

    attacks: tuple[str, ...]
    recoveries: tuple[str, ...] = ("none",)
    defenses: tuple[DefensePlan, ...]
    sweep: bool = False

    OWN: ClassVar[str] = "its own"

    def resolved(self, campaign: "Campaign") -> Section:
        """A row each line, or in a sweep each value of its knob, and budget."""
        lines = [setting for line in self.defenses for setting in (_sweep(line) if self.sweep else [line])]
        rows = [self._row(campaign, line, budget) for budget in self.budgets for line in lines]
        own = [self.OWN] if any(line.recovery for line in lines) else []
        headers = [column_label(attack, recovery) for recovery in [*self.recoveries, *own] for attack in self.attacks]
        return DefenseSection(name=self.name, title=self.title, text=self.text, headers=headers, rows=rows)

    def _row(self, campaign: "Campaign", line: DefensePlan, budget: int) -> DefenseRow:
        recoveries = {recovery: recovery for recovery in self.recoveries}
        if line.recovery is not None and line.recovery not in recoveries:
            recoveries[self.OWN] = line.recovery
        columns = {
            column_label(attack, shown): campaign.add(self, attack, line.defense, recovery, budget, self.seeds)
            for shown, recovery in recoveries.items()
            for attack in self.attacks
        }
        return DefenseRow(
            defense=_with_knob(line.defense),
            family=family(load_defense(line.defense).traits),
            recovery=line.recovery or "",
            columns=columns,
            note=line.note,
        )


def _with_knob(spec: str) -> str:
    """A defense as the plan writes it, and what its knob is at."""
    defense = load_defense(spec)
    knob = defense.traits.knob
    if knob is None:
        return spec
    name, params = parse_spec(spec)
    return format_spec(name, params | {knob: getattr(defense, knob)})


def _sweep(line: DefensePlan) -> Iterator[DefensePlan]:
    """The defense at each value of its declared sweep, weakest first; as it is if it declares none."""
    traits = load_defense(line.defense).traits
    if traits.knob is None:
        yield DefensePlan(defense=line.defense)
        return
    name, params = parse_spec(line.defense)
    for value in traits.sweep:
        yield DefensePlan(defense=format_spec(name, params | {traits.knob: value}))


S = TypeVar("S", bound=SectionPlan)


class PagePlan(_Part, Generic[S]):
    """A whole plan."""

    title: str
    text: str
    section: tuple[S, ...]

    @model_validator(mode="before")
    @classmethod
    def _take_over(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Give sections that name no defenses those that were named last: a defense is one line for all of them."""
        for before, after in pairwise(data.get("section", [])):
            if "defenses" in before:
                after.setdefault("defenses", before["defenses"])
        return data


PAGES: dict[str, type[PagePlan[AttackSectionPlan]] | type[PagePlan[DefenseSectionPlan]]] = {
    "attacks": PagePlan[AttackSectionPlan],
    "defenses": PagePlan[DefenseSectionPlan],
}
"""The pages there are, each with its kind of plan."""


def plan_text(name: str) -> str:
    """The packaged plan of a page."""
    return files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8")


# --------------------------------------------------------------------------------------------------- campaigns


class Campaign:
    """A page with all of its runs decided.

    Args:
        name: one of `PAGES`.

    Raises `UsageError` for a plan that is not usable, and as `resolve`.
    """

    def __init__(self, name: str) -> None:
        try:
            plan = PAGES[name].model_validate(tomllib.loads(plan_text(name)))
        except (tomllib.TOMLDecodeError, ValidationError) as error:
            raise UsageError(f"the plan of {name} is not usable: {error}") from None
        self.cells: dict[str, Cell] = {}
        """By run id: a run that several sections ask for is one."""
        self.page = Page(
            title=plan.title,
            text=plan.text,
            command=f"msbench study {name} --data-dir DIR --store DIR",
            sections=[section.resolved(self) for section in plan.section],
        )

    def add(
        self, section: SectionPlan, attack: str, defense: str, recovery: str, budget: int, seeds: Iterable[int]
    ) -> Runs:
        """Decide the runs of one cell. A random defense's seed goes with the attack's: the interval spans both."""
        asked = RunSpec(
            target=section.target,
            defense=defense,
            attack=attack,
            recovery=recovery,
            pool=section.pool,
            budget=budget,
        )
        first = resolve(asked)
        random = first.defense.traits.stochastic
        specs = []
        for seed in seeds:
            other = seed if random else asked.defense_seed
            info = first.info.model_copy(update={"seed": seed, "defense_seed": other})
            cell = Cell(request=replace(asked, seed=seed, defense_seed=other), info=info)
            self.cells[cell.run_id] = cell
            specs.append(info)
        learns = not LEARNS_FROM.isdisjoint(first.defense.traits.needs)
        return Runs(attack=attack, defense=defense, recovery=recovery, specs=tuple(specs), learns=learns)

    def due(self, only: tuple[str, ...] = ()) -> list[Cell]:
        """The runs of all sections, or of those named, in the order in which they are due.

        Raises `UnknownName` for a section that is not there.
        """
        known = [section.name for section in self.page.sections]
        for name in only:
            if name not in known:
                raise UnknownName("section", name, known)
        chosen = [section for section in self.page.sections if not only or section.name in only]
        ids = (
            run_id
            for section in chosen
            for of_one_seed in zip_longest(*(runs.ids for runs in section.runs))
            for run_id in of_one_seed
            if run_id is not None
        )
        return [self.cells[run_id] for run_id in dict.fromkeys(ids)]

    def render(self, store: Store) -> str:
        """The page from the store's records, as Markdown."""
        found = (store.get(cell.info) for cell in self.cells.values())
        return render(self.page, {record.run_id: record for record in found if record is not None})
