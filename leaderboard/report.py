"""Scores and runs, made readable: the defense-by-attack table in five formats, and the report of one run.

Every format of the table is made from the rows of `score_rows`, so that they cannot disagree: JSON
and CSV are these rows, one a cell and numbers unrounded; the terminal, plain text and Markdown show their pivot.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .curve import before_refusal
from .grid import Grid, markdown_section, rich_section, text_section
from .record import CurvePoint, Distance, Record
from .score_rows import ScoreRow, frame
from .scoring import spec_text
from .texts import MISSING, SIGMA, visible

_READING = (
    "Cells: agreement with the undefended target in %, mean ± half the 95 % interval over seeds "
    "(n shown below 3); lower is better for the defense.",
    f"Worst case, in bold: the largest stolen share {SIGMA} among the attacks present "
    "(0: nothing, 1: all that the target knows beyond chance); ≥ where attacks are missing.",
    f"Defended accuracy and L1: the worst among the row's cells. Rows are in the order of {SIGMA}, "
    "incomplete ones last; differences within the intervals are no ranking.",
)

_NAMED = 5
"""Cells of a table that are named behind a flag; which others have it is in the rows."""

_LONG = 40
"""Signs of an attack's label that a table has room for; longer ones stand below it."""

_PARAMETERS = re.compile(r":[^+ ]*| \(.*\)$")
"""What is left out of a long label: parameters, and what is special about clone, pool and precision."""


# ----------------------------------------------------------------------------------------- the table's pivot


def grids(rows: Iterable[ScoreRow]) -> Iterator[Grid]:
    """The tables of `score_rows`: one for each protocol, target and budget."""
    for _, table in groupby(rows, key=lambda row: row.table):
        yield _grid(list(table))


def _grid(table: list[ScoreRow]) -> Grid:
    short = _short_names(_distinct(cell.attack for cell in table))
    legend = [f"{name}: {label}" for label, name in short.items() if name != label]
    table = [cell._replace(attack=short[cell.attack]) for cell in table]
    present = [cell for cell in table if cell.n]
    marks = {note: "*" * (i + 1) for i, note in enumerate(_distinct(cell.note for cell in present))}
    noted = {cell.attack: marks.get(cell.note, "") for cell in present}
    attacks = [attack + noted[attack] for attack in short.values()]
    lines = [list(cells) for _, cells in groupby(table, key=lambda cell: cell.defense)]
    return Grid(
        title=_title(present),
        header=["defense", *attacks, f"worst case {SIGMA}", "defended acc. %", "mean L1"],
        rows=[_row(cells) for cells in lines],
        worst=[tuple(i for i, cell in enumerate(cells, 1) if cell.worst_case) for cells in lines],
        notes=[*_READING, *(f"{mark} {note}" for note, mark in marks.items()), *legend, *_remarks(present)],
    )


def _short_names(attacks: Iterable[str]) -> dict[str, str]:
    """What stands in a table for each attack: its label, or, where that is long, the names in it and a number."""
    short = {attack: attack for attack in attacks}
    for number, attack in enumerate([attack for attack in short if len(attack) > _LONG], 1):
        short[attack] = f"{_PARAMETERS.sub('', attack)} ({number})"
    return short


def _distinct(values: Iterable[str]) -> list[str]:
    """In the order of appearance, without the empty one."""
    return [value for value in dict.fromkeys(values) if value]


def _title(cells: list[ScoreRow]) -> str:
    accuracies = sorted(cell.target_accuracy for cell in cells)
    accuracy = " to ".join(dict.fromkeys((_percent(accuracies[0]), _percent(accuracies[-1]))))
    one = cells[0]
    return f"{one.target} · {one.budget:,} queries · protocol {one.protocol} · undefended accuracy {accuracy}"


def _row(cells: list[ScoreRow]) -> list[str]:
    present = [cell for cell in cells if cell.n]
    accuracy = min(cell.defended_accuracy for cell in present)
    distance = max(cell.l1 for cell in present)
    paid = f"{100 * accuracy:.1f}", f"{distance:.2f}"
    return [cells[0].defense, *map(_cell_text, cells), _worst_text(cells), *paid]


def _cell_text(cell: ScoreRow) -> str:
    if cell.n == 0:
        return MISSING
    text = plus_minus(100 * cell.agreement, 100 * cell.agreement_interval, 1)
    return text if cell.n >= 3 else f"{text} (n={cell.n})"


def _worst_text(cells: list[ScoreRow]) -> str:
    for cell in cells:
        if cell.worst_case:
            bound = "" if cell.complete else "≥ "
            return f"{bound}{plus_minus(cell.stolen_share, cell.stolen_share_interval, 2)} {cell.attack}"
    return MISSING


def plus_minus(mean: float, half: float, digits: int) -> str:
    """A mean with half its interval, which a single run has not."""
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def _remarks(cells: list[ScoreRow]) -> Iterator[str]:
    copies = {digest for cell in cells for digest in cell.targets.split("; ")}
    if len(copies) > 1:
        yield f"Not all runs attacked the same weights: the target was trained {len(copies)} times."
    flagged: dict[str, list[str]] = defaultdict(list)
    for cell in cells:
        for flag in _distinct(cell.flags.split("; ")):
            flagged[flag].append(f"{cell.attack} against {cell.defense}")
    for flag, where in flagged.items():
        rest = f" and {len(where) - _NAMED:,} more" if len(where) > _NAMED else ""
        yield f"Flag: {flag} ({', '.join(where[:_NAMED])}{rest})"


# --------------------------------------------------------------------------------------- the table's formats


def to_rich(rows: Iterable[ScoreRow]) -> RenderableType:
    """The tables for a terminal."""
    return Group(*(part for grid in grids(rows) for part in (rich_section(grid), Text())))


def to_text(rows: Iterable[ScoreRow]) -> str:
    """The tables as plain text, for a file or a pipe."""
    return "\n".join(map(text_section, grids(rows)))


def to_markdown(rows: Iterable[ScoreRow]) -> str:
    """The tables as Markdown, one section each."""
    return "\n".join(map(markdown_section, grids(rows)))


def to_csv(rows: Iterable[ScoreRow]) -> str:
    """The rows as CSV; what does not exist is empty."""
    return frame(rows).to_csv(index=False, lineterminator="\n")


def to_json(rows: Iterable[ScoreRow]) -> str:
    """The rows as a JSON array of cells; what does not exist is null."""
    cells = frame(rows).astype(object)
    known = cells.where(cells.notna(), None)
    return json.dumps(known.to_dict("records"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


# -------------------------------------------------------------------------------------------------- one run


def verdict(record: Record) -> str:
    """What came of a run, in one line."""
    who = f"{_attack(record)} against {spec_text(record.spec.defense)} at {record.spec.budget:,} queries"
    if record.error is not None:
        return f"{who}: {record.status}: {record.error.type}: {' '.join(record.error.message.split())}"
    if record.stolen is None or record.paid is None or record.target is None:
        return f"{who}: {record.status} after {record.budget.spent:,} queries"
    return (
        f"{who}: agreement {_percent(record.stolen.agreement)}, clone accuracy "
        f"{_percent(record.stolen.clone_accuracy)} (target {_percent(record.target.accuracy)}), "
        f"defended accuracy {_percent(record.paid.defended_accuracy)}, mean L1 {record.paid.l1.mean:.2f}"
    )


def report_run(record: Record, path: Path | None = None) -> RenderableType:
    """The report of one run, at most 100 columns wide: what was stolen, what was paid, at which price.

    Args:
        record: of any status; what it does not have is left out.
        path: where the record was written.
    """
    parts: list[RenderableType] = [Text(_heading(record), style="bold"), Text(verdict(record)), Text()]
    parts.append(_side_by_side(_stolen(record), _paid(record), _spent(record)))
    if record.curve:
        parts += [Text(), _curve(record.curve)]
    parts += [Text(f"flag: {visible(flag)}", style="yellow") for flag in record.flags]
    if path is not None:
        parts.append(Text(f"record: {path}", style="dim"))
    return Group(*parts)


def _heading(record: Record) -> str:
    spec = record.spec
    seeds = f"seed {spec.seed}, defense seed {spec.defense_seed}, target seed {spec.target_seed}"
    return f"{spec.target.name} · {seeds} · run {record.run_id} · {record.status}"


def _attack(record: Record) -> str:
    attack, recovery = record.spec.attack.name, record.spec.recovery
    return attack if recovery.name == "none" else f"{attack}+{spec_text(recovery)}"


def _stolen(record: Record) -> dict[str, str]:
    stolen = record.stolen
    if stolen is None:
        return {}
    transfer = stolen.transfer
    return {
        "STOLEN": "",
        "agreement": _percent(stolen.agreement),
        "… with released": _percent(stolen.agreement_released),
        "clone accuracy": _percent(stolen.clone_accuracy),
        "KL, L1": f"{stolen.kl:.2f} nats, {stolen.l1:.2f}",
        "queries to half": _queries(stolen.queries_to_half),
        "queries to 90 %": _queries(stolen.queries_to_90),
        "area u. curve": _percent(stolen.area_under_curve),
        f"FGSM, ε={transfer.epsilon:.3g}": _percent(transfer.fgsm),
        "BIM": _percent(transfer.bim),
        "PGD": _percent(transfer.pgd),
    }


def _paid(record: Record) -> dict[str, str]:
    paid = record.paid
    if paid is None:
        return {}
    return {
        "PAID": "",
        "accuracy after": _percent(paid.defended_accuracy),
        "… before attack": _percent(paid.defended_accuracy_before),
        "… undefended": _percent(record.target.accuracy if record.target else None),
        "argmax changed": _percent(paid.argmax_changed),
        "L1 mean/p95/max": _distance(paid.l1),
        "… on queries": _distance(paid.l1_queries),
        "NLL, ECE": f"{paid.nll:.2f} nats, {_percent(paid.ece)}",
        "AUROC": _percent(paid.auroc),
        "state": f"{paid.state_bytes:,} bytes",
    } | _detected(record)


def _detected(record: Record) -> dict[str, str]:
    """What a defense that detects made of honest queries and of the attack's; empty for any other."""
    detection = record.diagnostics.detection if record.diagnostics else None
    if record.paid is None or record.paid.flagged is None or detection is None:
        return {}
    before = before_refusal(record)
    return {
        "honest flagged": _percent(record.paid.flagged),
        "honest refused": _percent(record.paid.refused),
        "attack flagged": f"{detection.flagged:,}",
        "… from query": _queries(detection.first_flagged),
        "attack refused": f"{detection.refused:,}",
        "… clone before": _percent(before.clone_accuracy if before else None),
    }


def _spent(record: Record) -> dict[str, str]:
    budget, timing = record.budget, record.timing
    latency = {f"latency at {size}": f"{ratio:.2f} times" for size, ratio in timing.latency_ratio.items()}
    return {
        "BUDGET": "",
        "queries": f"{budget.spent:,}",
        "of": f"{budget.limit:,}",
        "ended": budget.stop,
        "wall time": f"{timing.wall:,.1f} s",
        "… attack": f"{timing.attack:,.1f} s",
        "… evaluation": f"{timing.evaluation:,.1f} s",
        "resumed": f"{timing.resumed} times",
        **latency,
        "device": f"{record.env.device}, {record.spec.precision}",
    }


def _side_by_side(*blocks: dict[str, str]) -> Table:
    outer = Table.grid(padding=(0, 3))
    outer.add_row(*(_block(block) for block in blocks if block))
    return outer


def _block(block: dict[str, str]) -> Table:
    inner = Table.grid(padding=(0, 1))
    inner.add_column(no_wrap=True)
    inner.add_column(justify="right", max_width=16, overflow="fold")
    for name, value in block.items():
        inner.add_row(Text(name, style="dim" if value else "bold"), Text(value))
    return inner


def _curve(curve: list[CurvePoint]) -> Table:
    """The last ten milestones, with a bar for each agreement."""
    table = Table.grid(padding=(0, 1))
    points = curve[-10:]
    table.add_row("queries", *(Text(_short(point.queries), justify="right") for point in points))
    for name in ("agreement", "clone_accuracy", "defended_accuracy"):
        texts = (f"{100 * getattr(point, name):.1f}" for point in points)
        table.add_row(name.replace("_", " ") + " %", *(Text(text, justify="right") for text in texts))
    bars = ("▁▂▃▄▅▆▇█"[min(7, int(8 * point.agreement))] * 3 for point in points)
    table.add_row("", *(Text(bar, style="cyan", justify="right") for bar in bars))
    return table


# ------------------------------------------------------------------------------------------------- numbers


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f} %"


def _queries(count: int | None) -> str:
    return "not reached" if count is None else f"{count:,}"


def _distance(distance: Distance | None) -> str:
    return f"{distance.mean:.2f}/{distance.p95:.2f}/{distance.max:.2f}" if distance else MISSING


def _short(count: int) -> str:
    """A number of queries in at most five characters: 950, 15k, 1.2M."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
