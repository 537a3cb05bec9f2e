"""A board, made readable: one tidy intermediate, and the terminal, Markdown, CSV, LaTeX and JSON made from it.

`sheets` lays a board out as data frames, numbers unrounded: a row for each table, each setting of a defense, each cell
and each attack. CSV and JSON are these frames. The terminal, Markdown and LaTeX show the same grids of text, which are
made from the frames alone; so no two of them can disagree. Names on a board are written by third parties: every format
escapes them.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from ..errors import UsageError
from .board import (
    DROP_CAPS,
    FAMILIES,
    L1_CAPS,
    SHOWN_FIRST,
    Board,
    BoardTable,
    Row,
    Score,
    Tier,
    gate_text,
    worst_share,
)
from .board_attacks import JUDGED_OVER
from .grid import Grid, latex_section, markdown_section, rich_section, text_section
from .report import plus_minus
from .scoring import RANK, Estimate
from .texts import FLAGGED, MISSING, SIGMA, escape_markdown, marked, visible

TABLE = ["table", "target", "budget"]
"""What tells the tables of a board apart: their position from 1, for two of them may be of one target and budget."""
SETTING = [*TABLE, "defense", "setting"]
"""What tells the settings apart."""

_HEADINGS = {
    "control": "Controls",
    "deterministic": "Deterministic output defenses",
    "randomized": "Randomized defenses",
    "stateful": "Stateful defenses",
    "training": "Training-time defenses",
    "detection": "Detection",
    "deterrent": "Deterrents",
}

_MARK = f"{FLAGGED} flagged: of what, the notes on every setting say; a flag takes no score and no rank away."
_RANKING = (
    f"{SIGMA}: the stolen share of the worst case among the ranked columns, mean ± half the 95 % interval over seeds "
    "(0: nothing, 1: all that the target knows beyond the floor); lower is better for the defense. By: the attack that "
    "stole it, or all that tie; none where nothing was stolen.",
    "Where queries were refused, the clone counts as it was at the last milestone before, if it was better then.",
    f"Rank: {RANK}. Controls have none.",
    "Accuracy, drop (points of accuracy lost), L1 (mean distance of released from clean answers): the worst mean over "
    "the ranked columns. Shifted drop and shifted L1: the same on a shifted copy of the test set, for which the caps "
    "hold as well. Latency: times the bare target's, in batches of 256.",
    _MARK,
)
_CELLS = (
    f"Stolen share {SIGMA} of each setting under each column; in bold the worst case, if anything was stolen. "
    f"(n=…): of so many seeds, where some are missing. {MISSING}: not run, or without a share, for a target that was "
    "attacked is no better than the floor.",
    "* never ranked: what the attacker gets without asking (floor), or what no attacker can do (reference).",
    f"{FLAGGED} flagged, as said below.",
)
_ATTACKS = (
    f"Mean {SIGMA} and worst case for: over {JUDGED_OVER}. The rest is measured on the undefended target; an attack "
    "that is not within the threshold of its reference closes the table.",
)
_SUBMITTED = "Submitted attacks: no columns yet, but this is what they do to published scores"


@dataclass(frozen=True, kw_only=True)
class Sheets:
    """A board as frames, under one pair of caps. What does not exist is NaN, or None among texts."""

    board: Board
    drop: float
    l1: float
    tables: pd.DataFrame
    """`TABLE`, num_classes, seeds, accuracy, floor, runs_done, runs_planned, open, blockers, flags."""
    settings: pd.DataFrame
    """`SETTING`, family, position (the defense's, in the tier's order), placed (the defense enters the tier with this
    setting), rank, why (there is none), complete, worst_case (the column, or those that tie; None where nothing was
    stolen), worst_sigma, worst_sigma_interval, accuracy, drop, l1, shifted_drop, shifted_l1, latency, warnings,
    reproduce."""
    cells: pd.DataFrame
    """`SETTING`, attack (with its recovery), role, worst (it is the setting's worst case, or one of them), n, sigma,
    clone_accuracy and agreement, each with its ``…_interval``, queries_to_half, seconds, run_ids. Cells that were asked
    for and not run have n = 0."""
    attacks: pd.DataFrame
    """`TABLE`, attack, role, sigma and worst_for (at this tier), queries_to_half, seconds; and for those at the gate
    clone_accuracy, reference, each with its ``…_interval``, threshold, holds, gate."""


def sheets(board: Board, drop: float = SHOWN_FIRST[0], l1: float = SHOWN_FIRST[1]) -> Sheets:
    """Lay out a board at one tier.

    Args:
        drop: cap on the loss of accuracy, a share.
        l1: cap on the mean L1 distance.

    Raises `UsageError` for caps that make no tier.
    """
    drop, l1 = _cap(drop, DROP_CAPS, "drop of accuracy"), _cap(l1, L1_CAPS, "L1 distance")
    tables = list(enumerate(board.tables, 1))
    return Sheets(
        board=board,
        drop=drop,
        l1=l1,
        tables=_frame((_table_row(i, table) for i, table in tables), _TABLES),
        settings=_frame(
            (row for i, table in tables for row in _setting_rows(i, table, _tier(table, drop, l1))), _SETTINGS
        ),
        cells=_frame((row for i, table in tables for row in _cell_rows(i, table)), _CELL_COLUMNS),
        attacks=_frame(
            (row for i, table in tables for row in _attack_rows(i, table, _tier(table, drop, l1))), _ATTACK_COLUMNS
        ),
    )


# ---------------------------------------------------------------------------------------------------- the frames

_TABLES = [
    *TABLE,
    "num_classes",
    "seeds",
    "accuracy",
    "floor",
    "runs_done",
    "runs_planned",
    "open",
    "blockers",
    "flags",
]
_PAID = ("accuracy", "drop", "l1", "shifted_drop", "shifted_l1", "latency")
_SETTINGS = [
    *SETTING,
    *("family", "position", "placed", "rank", "why", "complete", "worst_case", "worst_sigma", "worst_sigma_interval"),
    *_PAID,
    *("warnings", "reproduce"),
]
_SCORES = ("sigma", "clone_accuracy", "agreement")
_CELL_COLUMNS = [
    *(*SETTING, "attack", "role", "worst", "n"),
    *(name for score in _SCORES for name in (score, f"{score}_interval")),
    *("queries_to_half", "seconds", "run_ids"),
]
_ATTACK_COLUMNS = [
    *(*TABLE, "attack", "role", "sigma", "worst_for", "queries_to_half", "seconds"),
    *("clone_accuracy", "clone_accuracy_interval", "reference", "reference_interval", "threshold", "holds", "gate"),
]
_WHOLE = ("rank", "position", "n", "worst_for")
"""Columns of whole numbers, of which some may be missing."""
_TEXTS = (
    *("target", "defense", "setting", "family", "why", "worst_case", "warnings", "reproduce", "attack", "role"),
    *("run_ids", "gate", "seeds", "blockers", "flags"),
)
_EXACT = ("table", "budget", "num_classes", "runs_done", "runs_planned")
_MARKS = ("open", "placed", "complete", "worst", "holds")


def _cap(asked: float, caps: Sequence[float], what: str) -> float:
    for cap in caps:
        if abs(asked - cap) < 1e-9:
            return cap
    raise UsageError(f"no tier caps the {what} at {asked:g}: choose among {', '.join(f'{cap:g}' for cap in caps)}")


def _tier(table: BoardTable, drop: float, l1: float) -> Tier:
    return next(tier for tier in table.tiers if (tier.drop, tier.l1) == (drop, l1))


def _frame(rows: Iterable[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """Rows as a frame; a column of numbers stays one where none of them is known."""
    numbers = [name for name in columns if name not in (*_TEXTS, *_MARKS, *_EXACT)]
    types: dict[str, Any] = {name: "Int64" if name in _WHOLE else float for name in numbers}
    return pd.DataFrame(list(rows), columns=columns).astype(types)


def _table_row(number: int, table: BoardTable) -> dict[str, Any]:
    same = ("num_classes", "accuracy", "floor", "runs_done", "runs_planned", "open")
    row = _place(number, table) | {name: getattr(table, name) for name in same}
    row["seeds"] = " ".join(map(str, table.seeds))
    return row | {"blockers": "; ".join(table.blockers), "flags": "; ".join(table.flags)}


def _place(number: int, table: BoardTable) -> dict[str, Any]:
    return {"table": number, "target": table.target, "budget": table.budget}


def _setting_rows(number: int, table: BoardTable, tier: Tier) -> Iterator[dict[str, Any]]:
    places = {one.defense: (position, one) for position, one in enumerate(tier.placed, 1)}
    for i, row in enumerate(table.rows):
        position, place = places[row.defense]
        yield _key(number, table, row) | {
            "family": table.defenses[row.defense].family,
            "position": position,
            "placed": place.row == i,
            "rank": place.rank if place.row == i else None,
            "why": place.why,
            "complete": row.complete,
            "worst_case": table.worst_case(row) or None,
            **_interval("worst_sigma", worst_share(row)),
            **{name: getattr(row, name) for name in _PAID},
            "warnings": "; ".join(row.flags),
            "reproduce": row.reproduce,
        }


def _cell_rows(number: int, table: BoardTable) -> Iterator[dict[str, Any]]:
    for row in table.rows:
        bare = table.defenses[row.defense].name == "none"
        for i, (column, score) in enumerate(zip(table.columns, row.scores, strict=True)):
            if score or bare or column.role == "ranked":
                place = {"attack": column.label, "role": column.role, "worst": i in row.worst_cases}
                yield _key(number, table, row) | place | _score_row(score)


def _key(number: int, table: BoardTable, row: Row) -> dict[str, Any]:
    return _place(number, table) | {"defense": table.defenses[row.defense].name, "setting": row.setting}


def _score_row(score: Score | None) -> dict[str, Any]:
    if score is None:
        return {"n": 0}
    row: dict[str, Any] = {"n": score.n, "queries_to_half": score.queries_to_half, "seconds": score.seconds}
    for name in _SCORES:
        row |= _interval(name, getattr(score, name))
    return row | {"run_ids": " ".join(score.run_ids)}


def _attack_rows(number: int, table: BoardTable, tier: Tier) -> Iterator[dict[str, Any]]:
    gate = {line.column: line for line in table.gate}
    for attack in tier.attacks:
        column, line = table.columns[attack.column], gate.get(attack.column)
        same = ("sigma", "worst_for", "queries_to_half", "seconds")
        row = _place(number, table) | {"attack": column.label, "role": column.role}
        row |= {name: getattr(attack, name) for name in same}
        if line is not None:
            row |= _interval("clone_accuracy", line.measured) | _interval("reference", line.reference)
            row |= {"threshold": line.threshold, "holds": line.holds, "gate": gate_text(line, len(table.seeds))}
        yield row


def _interval(name: str, known: Estimate | None) -> dict[str, Any]:
    return {name: known.mean if known else None, f"{name}_interval": known.half if known else None}


# ----------------------------------------------------------------------------------------------------- the grids


def grids(laid: Sheets) -> Iterator[Grid]:
    """What the terminal, Markdown and LaTeX show of each table: a ranking for each family, cells, and attacks."""
    for table in _lines(laid.tables):
        settings, cells, attacks = (_of(frame, table) for frame in (laid.settings, laid.cells, laid.attacks))
        families = [family for family in FAMILIES if family != "control" and family in set(settings.family)]
        title = f"{table.target} · {table.budget:,} queries"
        caps = f"drop ≤ {100 * laid.drop:g} points, L1 ≤ {laid.l1:g}"
        for i, family in enumerate(families or ["control"]):
            shown = settings[settings.family.isin(("control", family))]
            notes = list(_RANKING) if i == 0 else []
            yield _ranking(f"{title} · {_HEADINGS[family]} · {caps}", shown, notes)
        yield _cell_grid(f"{title} · every setting", table, settings, cells)
        yield _attack_grid(f"{title} · attacks · {caps}", attacks)


def heading(laid: Sheets) -> list[str]:
    """Title, text and provenance of a board, a paragraph each."""
    board = laid.board
    done, planned = laid.tables.runs_done.sum(), laid.tables.runs_planned.sum()
    made = (
        f"Suite {board.suite} · protocol {board.protocol} · {done:,} of {planned:,} runs · records {board.records[:12]}"
    )
    return [f"{board.title}", *filter(None, [" ".join(board.text.split())]), made]


def _lines(frame: pd.DataFrame) -> list[Any]:
    """The rows, each with its columns as attributes."""
    return list(frame.itertuples(index=False))


def _of(frame: pd.DataFrame, table: Any) -> pd.DataFrame:
    mine: pd.DataFrame = frame.loc[frame["table"] == table.table]
    return mine


def _ranking(title: str, settings: pd.DataFrame, notes: list[str]) -> Grid:
    """One line a defense: the setting that it enters with, or why there is none."""
    entered = settings.sort_values("placed", ascending=False, kind="stable").drop_duplicates("defense")
    lines = list(entered.sort_values("position", kind="stable").itertuples(index=False))
    warned = set(settings.defense[settings.warnings != ""])
    paid = ("accuracy %", "drop", "L1", "shifted drop", "shifted L1", "latency")
    return Grid(
        title=title,
        header=["defense", "rank", f"worst case {SIGMA}", "by", *paid, ""],
        rows=[_rank_row(one, warned=one.defense in warned) for one in lines],
        worst=[(2,)] * len(lines),
        notes=notes,
    )


def _rank_row(one: Any, *, warned: bool) -> list[str]:
    """
    Args:
        warned: whether any of the defense's settings is flagged.
    """
    if not one.placed:
        return [one.defense, MISSING, *[MISSING] * 8, one.why + (" (flagged)" if warned else "")]
    note = one.why + ("" if not one.warnings else " (flagged)" if one.why else "flagged")
    return [
        _name(one),
        MISSING if pd.isna(one.rank) else str(one.rank),
        plus_minus(one.worst_sigma, one.worst_sigma_interval, 2),
        one.worst_case if isinstance(one.worst_case, str) else MISSING,
        *(_number(100 * one.accuracy, 1), _number(100 * one.drop, 1), _number(one.l1, 2)),
        *(_number(100 * one.shifted_drop, 1), _number(one.shifted_l1, 2), _number(one.latency, 2)),
        note,
    ]


def _name(one: Any) -> str:
    """As `Row.name` has it."""
    return marked(str(one.setting), one.warnings)


def _cell_grid(title: str, table: Any, settings: pd.DataFrame, cells: pd.DataFrame) -> Grid:
    seeds = len(table.seeds.split())
    roles = dict(zip(cells.attack, cells.role, strict=True))
    found = {(one.defense, one.setting, one.attack): one for one in _lines(cells)}
    lines = [(_name(one), [found.get((one.defense, one.setting, name)) for name in roles]) for one in _lines(settings)]
    return Grid(
        title=title,
        header=["setting", *(name if role == "ranked" else f"{name} *" for name, role in roles.items())],
        rows=[[name, *(_cell_text(cell, seeds) for cell in line)] for name, line in lines],
        worst=[tuple(i for i, cell in enumerate(line, 1) if cell is not None and cell.worst) for _, line in lines],
        notes=[*_CELLS, *_remarks(table, settings, cells)],
    )


def _cell_text(cell: Any, seeds: int) -> str:
    if cell is None or cell.n == 0 or pd.isna(cell.sigma):
        return MISSING
    text = plus_minus(cell.sigma, cell.sigma_interval, 2)
    return text if cell.n >= seeds else f"{text} (n={cell.n})"


def _attack_grid(title: str, attacks: pd.DataFrame) -> Grid:
    header = [
        "attack",
        f"mean {SIGMA}",
        "worst case for",
        "queries to half",
        "s per 100k",
        "clone acc. %",
        "reference %",
    ]
    lines = _lines(attacks)
    return Grid(
        title=title,
        header=[*header, "threshold", "gate"],
        rows=[_attack_row(one) for one in lines],
        worst=[()] * len(lines),
        notes=list(_ATTACKS),
    )


def _attack_row(one: Any) -> list[str]:
    return [
        one.attack if one.role == "ranked" else f"{one.attack} *",
        _number(one.sigma, 2),
        MISSING if pd.isna(one.worst_for) else str(one.worst_for),
        MISSING if pd.isna(one.queries_to_half) else f"{one.queries_to_half:,.0f}",
        _number(one.seconds, 1),
        _percent(one.clone_accuracy, one.clone_accuracy_interval),
        _percent(one.reference, one.reference_interval),
        _number(100 * one.threshold, 1) if pd.notna(one.threshold) else MISSING,
        one.gate if isinstance(one.gate, str) else MISSING,
    ]


def _remarks(table: Any, settings: pd.DataFrame, cells: pd.DataFrame) -> Iterator[str]:
    """What a reader of a table must know: why it is closed, what is missing, what is flagged."""
    accuracy = MISSING if pd.isna(table.accuracy) else f"{100 * table.accuracy:.1f} %"
    yield f"Undefended accuracy {accuracy}, floor {100 * table.floor:.1f} %, seeds {table.seeds}."
    if table.blockers:
        yield f"Nothing is ranked: {table.blockers}."
    for flag in filter(None, table.flags.split("; ")):
        yield f"Flag: {flag}"
    flagged: dict[str, list[str]] = defaultdict(list)
    for one in _lines(settings):
        for flag in filter(None, one.warnings.split("; ")):
            flagged[flag].append(one.setting)
    yield from (f"Flag: {flag} ({', '.join(where)})" for flag, where in flagged.items())
    lacking = cells[cells.n < len(table.seeds.split())]
    for setting, mine in lacking.groupby("setting", sort=False):
        columns = ", ".join(f"{one.attack} ({one.n})" for one in _lines(mine))
        yield f"Missing, of {len(table.seeds.split())} seeds: {setting} under {columns}"


def _number(value: float, digits: int) -> str:
    return MISSING if pd.isna(value) else f"{value:.{digits}f}"


def _percent(mean: float, half: float) -> str:
    return MISSING if pd.isna(mean) else plus_minus(100 * mean, 100 * half, 1)


# --------------------------------------------------------------------------------------------------- the formats


def to_rich(laid: Sheets) -> RenderableType:
    """The board for a terminal."""
    title, *rest = map(visible, heading(laid))
    head = [Text(title, style="bold"), *map(Text, rest), Text()]
    parts = [part for grid in grids(laid) for part in (rich_section(grid), Text())]
    results = [Text(f"- {visible(line)}") for line in _attack_results(laid.board)]
    return Group(*head, *parts, *([Text(_SUBMITTED, style="bold"), *results] if results else []))


def to_text(laid: Sheets) -> str:
    """The board as plain text, for a file or a pipe."""
    head = "".join(f"{visible(line)}\n" for line in heading(laid))
    results = "".join(f"- {visible(line)}\n" for line in _attack_results(laid.board))
    submitted = [f"{_SUBMITTED}\n{results}"] if results else []
    return "\n".join([head, *map(text_section, grids(laid)), *submitted])


def to_markdown(laid: Sheets) -> str:
    """The board as Markdown, a section for each grid, and one for what submitted attacks do."""
    title, *rest = map(escape_markdown, heading(laid))
    parts = [f"## {title}\n", *(f"{line}\n" for line in rest), *map(markdown_section, grids(laid))]
    if results := [f"- {escape_markdown(line)}" for line in _attack_results(laid.board)]:
        parts.append("\n".join([f"### {_SUBMITTED}\n", *results, ""]))
    return "\n".join(parts)


def _attack_results(board: Board) -> list[str]:
    """What submitted attacks do to published scores, a line each."""
    return [line for each in board.submitted for line in each.results]


def to_csv(laid: Sheets) -> str:
    """A line for each cell, with what belongs to its setting repeated; what does not exist is empty."""
    return laid.settings.merge(laid.cells, on=SETTING, how="left").to_csv(index=False, lineterminator="\n")


def to_json(laid: Sheets) -> str:
    """All frames, a list of objects each, and the entries as they were written; what does not exist is null."""
    board = laid.board
    data: dict[str, Any] = {name: getattr(board, name) for name in ("suite", "title", "text", "protocol", "records")}
    data["tier"] = {"drop": laid.drop, "l1": laid.l1}
    for name in ("tables", "settings", "cells", "attacks"):
        frame: pd.DataFrame = getattr(laid, name).astype(object)
        data[name] = frame.where(frame.notna(), None).to_dict("records")
    data["submitted"] = [
        each.entry.model_dump(mode="json") | {"kind": each.entry.kind, "results": each.results}
        for each in board.submitted
    ]
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_latex(laid: Sheets) -> str:
    """The rankings, cells and attacks as tables in the style of booktabs, which the document must load."""
    return "\n".join(map(latex_section, grids(laid)))
