"""Pages of documentation whose every number is from records: what was asked for, and what came of it, as Markdown.

A page lists the runs that it asks for as resolved specs, so that only records of exactly these runs count: where a
hyperparameter has changed since, the old numbers are missing, not shown. `render` is a pure function of the page and
the records; the same ones make the same bytes. Rows stand in the plan's order and rank nothing.
"""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from .record import Environment, Record, SpecInfo, run_id
from .scoring import Cell, Estimate, cells, estimate
from .suites import column_label
from .texts import MISSING

Records = Mapping[str, Record]
"""Records by run id."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What is asked for under one condition: its runs differ in their seeds only."""

    attack: str
    """As the plan writes it, like the others."""
    defense: str
    recovery: str
    specs: tuple[SpecInfo, ...]
    """A run each, in the order in which they are due."""
    learns: bool = False
    """Whether the defense trains something, which comes out otherwise where sums are rounded otherwise."""

    @property
    def ids(self) -> list[str]:
        """The runs' identities."""
        return [run_id(spec) for spec in self.specs]

    @property
    def budget(self) -> int:
        """Queries allowed in each run."""
        return self.specs[0].budget

    @property
    def name(self) -> str:
        """Attack and recovery, for headers and remarks."""
        return column_label(self.attack, self.recovery)

    @property
    def condition(self) -> str:
        """Attack, recovery and, where there is one, the defense."""
        return self.name if self.defense == "none" else f"{self.name} against {self.defense}"

    def done(self, records: Records) -> list[Record]:
        """The records of the runs that are done."""
        return [record for record in self.found(records) if record.status == "done"]

    def found(self, records: Records) -> list[Record]:
        """All records of the runs, whatever their status."""
        return [records[name] for name in self.ids if name in records]

    def score(self, records: Records) -> Cell | None:
        """Mean and interval over the runs that are done; None if none is."""
        scored = cells(self.done(records))
        return scored[0] if scored else None


@dataclass(frozen=True, kw_only=True)
class Section(ABC):
    """A part of a page: what it asks for, and how it is shown."""

    name: str
    title: str
    text: str

    @property
    @abstractmethod
    def runs(self) -> list[Runs]:
        """All that it asks for, in the order in which it is due."""

    @abstractmethod
    def tables(self, records: Records, machines: "Machines") -> Iterator[str]:
        """Its tables, as Markdown."""

    @abstractmethod
    def notes(self) -> Iterator[str]:
        """What the plan says about single rows."""

    @abstractmethod
    def remark(self, score: Cell) -> str:
        """What the scoring says about a cell, as far as it bears on what is shown here."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page before any number is known."""

    title: str
    text: str
    command: str
    """What makes the page again."""
    sections: Sequence[Section]


def render(page: Page, records: Records) -> str:
    """The page as Markdown. Records of other runs are not looked at."""
    asked = dict.fromkeys(name for section in page.sections for runs in section.runs for name in runs.ids)
    known = {name: records[name] for name in asked if name in records}
    done = [record for record in known.values() if record.status == "done"]
    machines = Machines(done)
    parts = [f"# {page.title}", page.text.strip(), _how(page.command), _provenance(done, len(asked), machines)]
    for section in page.sections:
        parts += [f"## {section.title}", section.text.strip(), *section.tables(known, machines)]
        parts.append(_bullets([*_remarks(section, known), *section.notes()]))
    return "\n\n".join(filter(None, parts)) + "\n"


# ------------------------------------------------------------------------------------------------- provenance


class Machines:
    """What kinds of machine a page's runs were made on: times from different kinds are never averaged."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.several = len({machine(record.env) for record in records}) > 1

    def means(self, records: Iterable[Record], value: Callable[[Record], float]) -> str:
        """Mean over the records of each machine, in seconds."""
        return self._each(records, value, lambda values: _seconds(estimate(values).mean))

    def medians(self, records: Iterable[Record], value: Callable[[Record], float | None]) -> str:
        """Median over the records of each machine: one timing of many is easily disturbed."""
        return self._each(records, value, lambda values: f"{median(values):.2f}")

    def _each(
        self,
        records: Iterable[Record],
        value: Callable[[Record], float | None],
        show: Callable[[list[float]], str],
    ) -> str:
        by_machine: dict[str, list[float]] = defaultdict(list)
        for record in records:
            known = value(record)
            if known is not None:
                by_machine[machine(record.env)].append(known)
        shown = [show(by_machine[name]) + (f" ({name})" if self.several else "") for name in sorted(by_machine)]
        return ", ".join(shown) or MISSING


def machine(env: Environment) -> str:
    """What a run's time depends on, in a few words."""
    threads = f"{env.threads} thread" + ("s" if env.threads != 1 else "")
    return f"{env.device}, {threads}" + (", compiled" if env.compiled else "")


def _how(command: str) -> str:
    return (
        "This page is made from records, every number of it, by\n\n"
        f"```sh\n{command}\n```\n\n"
        "which runs what is missing, continues what was interrupted, and keeps what is done. With `--render-only` it "
        "runs nothing.\n\n"
        "Scores are means over seeds ± half the 95 % interval (Student's t), n being the seeds that are done. Clone "
        "accuracy and agreement with the undefended target's top class are measured on the target's test set, which no "
        "attack sees. Seconds are a run's without its set-up; measuring the clone at ten milestones is included, for "
        "which attacks with a pool train it each time. Runs of one row may have been timed on several machines of a "
        "kind. What has not been run is *missing*. A random defense draws anew for every seed of the attack."
    )


def _provenance(done: list[Record], asked: int, machines: Machines) -> str:
    lines = [f"Runs: {len(done)} of {asked} are done."]
    if done:
        lines += [
            f"Protocol: {_counted(record.protocol for record in done)}.",
            f"Machines: {_counted(f'{machine(record.env)}, {record.env.platform}' for record in done)}.",
            f"Versions: {_counted(map(_versions, done))}.",
            f"Commits: {_counted(map(_commit, done))}.",
        ]
    if machines.several:
        lines.append("Times from different kinds of machine stand side by side, each with its kind.")
    return _bullets(lines)


def _versions(record: Record) -> str:
    env = record.env
    return f"msbench {env.msbench}, Python {env.python}, torch {env.torch}, timm {env.timm}"


def _commit(record: Record) -> str:
    changed = " with changes" if record.env.dirty else ""
    return (record.env.commit or "unknown")[:7] + changed


def _counted(values: Iterable[str]) -> str:
    """Each distinct value, with how many runs have it where there are several."""
    counts = Counter(values)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{value} ({counts[value]} runs)" for value in sorted(counts))


# ---------------------------------------------------------------------------------------------------- remarks


def _remarks(section: Section, records: Records) -> Iterator[str]:
    """What a reader should know before trusting a section's numbers."""
    yield from _targets(section, records)
    yield from _processors(section, records)
    told: dict[str, list[str]] = defaultdict(list)
    for runs in section.runs:
        score = runs.score(records)
        if score:
            told[section.remark(score)].append(runs.name)
            for flag in score.flags:
                told[f"flag: {flag}"].append(runs.condition)
        for remark in _of_runs(runs.found(records)):
            told[remark].append(runs.condition)
    for remark, whose in told.items():
        if remark:
            yield f"{', '.join(dict.fromkeys(whose))}: {remark}"


def _targets(section: Section, records: Records) -> Iterator[str]:
    """How good the targets are, which weights were attacked, and by which rows others than by most."""
    attacked: dict[str, Counter[str]] = defaultdict(Counter)
    accuracies: dict[str, set[str]] = defaultdict(set)
    rows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for runs in section.runs:
        done = [(record.spec.target.name, record.target) for record in runs.done(records) if record.target]
        for name, target in done:
            accuracies[name].add(f"{100 * target.accuracy:.1f}")
            attacked[name][target.digest] += 1
        for (name, digest), count in Counter((name, target.digest) for name, target in done).items():
            rows[name, digest].append(f"{runs.condition} ({count} of {len(done)} runs)")
    for name in sorted(attacked):
        most, *others = sorted(attacked[name], key=lambda digest: (-attacked[name][digest], digest))
        only = "" if others else f", of the weights {most[:8]}"
        yield f"Undefended accuracy of {name}: {' to '.join(_ends(accuracies[name]))} %{only}."
        if others:
            total, usual = attacked[name].total(), attacked[name][most]
            there = ", ".join(dict.fromkeys(row for digest in others for row in rows[name, digest]))
            yield (
                f"Not all runs attacked the same weights: {name} was trained {len(attacked[name])} times, on different "
                f"machines. {usual} of {total} runs attacked the weights {most[:8]}, these others: {there}."
            )


def _processors(section: Section, records: Records) -> Iterator[str]:
    """Which defenses are several, since they were trained on several kinds of processors."""
    kinds: dict[str, set[str | None]] = defaultdict(set)
    for runs in section.runs:
        if runs.learns:
            kinds[runs.defense.partition(":")[0]].update(record.env.arithmetic for record in runs.done(records))
    mixed = [name for name, found in kinds.items() if len(found) > 1]
    if mixed:
        yield (
            "A defense that learns is another one on another kind of processor. Runs of these were on several, in one "
            f"row or from one setting to the next: {', '.join(mixed)}."
        )


def _ends(values: set[str]) -> list[str]:
    ordered = sorted(values, key=float)
    return list(dict.fromkeys((ordered[0], ordered[-1])))


def _of_runs(found: Iterable[Record]) -> Iterator[str]:
    for record in found:
        if record.status == "done" and record.budget.spent < record.budget.limit:
            yield f"{record.budget.spent:,} of {record.budget.limit:,} queries were spent ({record.budget.stop})"
        if record.error is not None:
            yield f"seed {record.spec.seed} failed with {record.error.type} (run {record.run_id})"


# ------------------------------------------------------------------------------------------------------- text


def interval(share: Estimate) -> str:
    """A share's mean and half of its interval, in percent."""
    return f"{100 * share.mean:.1f}" + ("" if share.half is None else f" ± {100 * share.half:.1f}")


def absent(runs: Runs, records: Records) -> str:
    """Why a cell has no number: ``missing``, ``unfinished`` or ``failed``."""
    statuses = {record.status for record in runs.found(records)}
    if "failed" in statuses:
        return "failed"
    return "unfinished" if "interrupted" in statuses else "missing"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: range) -> str:
    """A Markdown table; columns in ``right`` are aligned to the right."""
    rule = ["---:" if i in right else "---" for i in range(len(header))]
    return "\n".join(_line(texts) for texts in (header, rule, *rows))


def _line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(text.split()).replace("|", r"\|") for text in texts) + " |"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)


def _seconds(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
