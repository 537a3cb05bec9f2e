"""The page: boards as one HTML file that asks nothing of any network and can be read with scripts off.

Everything shown is from `Board` objects, as in every other report. The text on a board is written by third parties:
the template escapes all of it, the only links of theirs lead to https, and the page's own policy lets run the one
script and the one style sheet that are in it, by their digests. The same boards make the same bytes.

Beside the page, a list of links to all records: of a thousand settings, they alone would make more than the page has.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import jinja2
from markupsafe import Markup

from ..errors import UsageError
from .board import DROP_CAPS, L1_CAPS, SHOWN_FIRST, Board, BoardTable, Placed, Row, Tier, gate_text, meets, worst_share
from .board_attacks import JUDGED_OVER, AttackLine
from .entries import Entry
from .scoring import RANK, Estimate
from .site_charts import (
    Curves,
    Scatter,
    attack_curves,
    defense_curves,
    scatters,
    short_count,
    undefended_row,
    worst_score,
)
from .suites import Column, DefenseEntry
from .texts import FLAGGED, MISSING, marked

FOLDER = Path(__file__).parent / "site"
RECORDS = "records.html"
"""The file of links to all records, beside the page."""

HEADINGS = {
    "control": "Controls",
    "deterministic": "Deterministic outputs",
    "randomized": "Randomized outputs",
    "stateful": "Stateful",
    "training": "Training-time",
    "detection": "Detection",
    "deterrent": "Deterrents",
}
"""The board's classes in the order of the page; each is ranked on its own."""

LISTED_MISSING = 8
"""How many incomplete settings are named before the rest is counted."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the ranking: a setting that is placed at some tier, or a defense that is without one at some."""

    defense: int
    row: int | None
    placed: Placed | None
    """Its place at the tier shown first; None if it has none there, and then it is hidden."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One table of a board as the template needs it."""

    id: str
    board: Board
    table: BoardTable
    label: str
    """The target, with the table's number where the board has several."""
    name: str
    """The whole name, for lists."""
    first: Tier
    """The tier shown first."""
    groups: tuple[tuple[str, tuple[Line, ...]], ...]
    """The ranking's lines, family by family."""
    scatters: tuple[Scatter, Scatter]
    curves: tuple[Curves, Curves]

    def rows_of(self, defense: int) -> list[tuple[int, Row]]:
        """A defense's settings with their positions."""
        return [(i, row) for i, row in enumerate(self.table.rows) if row.defense == defense]

    def entry_of(self, defense: int) -> Entry | None:
        """Who submitted a defense; None for those that are the suite's own."""
        name = self.table.defenses[defense].name
        entries = (each.entry for each in self.board.submitted if each.entry.kind == "defense")
        return next((entry for entry in entries if entry.name == name), None)

    def family(self, row: int) -> str:
        """The class of a setting's defense."""
        return self.table.defenses[self.table.rows[row].defense].family

    def flags_of(self, defense: int) -> list[tuple[str, list[str]]]:
        """What the records of a defense warn about, and in which settings."""
        warned: dict[str, list[str]] = {}
        for _, row in self.rows_of(defense):
            for flag in row.flags:
                warned.setdefault(flag, []).append(row.setting)
        return list(warned.items())

    def commands_of(self, defense: int) -> list[str]:
        """What runs the worst cases of a defense again: those it is judged by at some tier, else its first."""
        placed = {place.row for tier in self.table.tiers for place in tier.placed}
        rows = self.rows_of(defense)
        return [row.reproduce for i, row in rows if i in placed] or [row.reproduce for _, row in rows[:1]]

    @property
    def ranked(self) -> list[tuple[int, Column]]:
        """The columns that every setting meets, with their positions."""
        return [(i, column) for i, column in enumerate(self.table.columns) if column.role == "ranked"]

    def undefended(self, column: int) -> Estimate | None:
        """Clone accuracy that an attack reaches where nothing is defended."""
        row = undefended_row(self.table)
        score = row.scores[column] if row else None
        return score.clone_accuracy if score else None

    @property
    def tiers(self) -> list[Tier]:
        """In the order of the caps."""
        return sorted(self.table.tiers, key=lambda tier: (tier.drop, tier.l1))

    @property
    def incomplete(self) -> list[Row]:
        """The settings that lack runs."""
        return [row for row in self.table.rows if not row.complete]


def render_page(
    boards: Sequence[Board],
    *,
    paths: Mapping[str, str],
    records_url: str = "records",
    downloads: Sequence[str] = (),
) -> str:
    """The page as HTML.

    Args:
        boards: what is shown, in this order.
        paths: where each run's record stands below ``records_url``, by run id; a run without a path is not linked.
        records_url: the records' folder, relative to the page or an http(s) address.
        downloads: names of files beside the page.

    Raises `UsageError` for an address of another kind.
    """
    views = list(_views(boards))
    style, script = (_source(name) for name in ("page.css", "page.js"))
    return (
        _environment(paths, records_url)
        .get_template("page.html")
        .render(
            boards=boards,
            views=views,
            data={"tables": [_data(view.table) for view in views], "shown": list(SHOWN_FIRST)},
            downloads=[(name, quote(name)) for name in downloads],
            submitted_attacks=[each for board in boards for each in board.submitted if each.entry.kind == "attack"],
            families=HEADINGS,
            judged_over=JUDGED_OVER,
            rank=RANK,
            drop_caps=DROP_CAPS,
            l1_caps=L1_CAPS,
            shown_first=SHOWN_FIRST,
            style=Markup(style),
            script=Markup(script),
            policy=_policy(style, script),
        )
    )


def render_records(boards: Sequence[Board], *, paths: Mapping[str, str], records_url: str = "records") -> str:
    """The list of links to all records as HTML, an anchor for each defense. Takes and raises as `render_page`."""
    style = _source("page.css")
    template = _environment(paths, records_url).get_template(RECORDS)
    return template.render(views=list(_views(boards)), style=Markup(style), policy=_policy(style))


def _policy(style: str, *scripts: str) -> str:
    """What a page may do: nothing but to obey its own style sheet and scripts."""
    allowed = " ".join(map(_digest, scripts)) or "'none'"
    return (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


# ------------------------------------------------------------------------------------------------------- views


def _views(boards: Sequence[Board]) -> Iterator[View]:
    tables = [(board, place, table) for board in boards for place, table in enumerate(board.tables, 1)]
    for number, (board, place, table) in enumerate(tables):
        first = _shown_tier(table)
        shown = {place.row for place in first.placed}
        placed = {place.row for tier in table.tiers for place in tier.placed}
        # Two tables of a board may be of one target and budget: their numbers tell them apart, as in every report.
        label = f"{place}. {table.target}" if len(board.tables) > 1 else table.target
        name = f"{label} · {table.budget:,} queries"
        yield View(
            id=f"t{number}",
            board=board,
            table=table,
            label=label,
            name=name if len(boards) == 1 else f"{board.suite}: {name}",
            first=first,
            groups=tuple(_groups(table, first)),
            scatters=scatters(table),
            curves=(attack_curves(table), defense_curves(table, placed, shown)),
        )


def _shown_tier(table: BoardTable) -> Tier:
    return next(tier for tier in table.tiers if (tier.drop, tier.l1) == SHOWN_FIRST)


def _groups(table: BoardTable, first: Tier) -> Iterator[tuple[str, tuple[Line, ...]]]:
    """For each family that the table has: what is placed at the first tier, in its order, then what is elsewhere."""
    every = {(place.defense, place.row) for tier in table.tiers for place in tier.placed}
    shown = {(place.defense, place.row): place for place in first.placed}
    hidden = sorted(every - shown.keys(), key=lambda place: (place[0], -1 if place[1] is None else place[1]))
    lines = [Line(defense=d, row=row, placed=shown.get((d, row))) for d, row in (*shown, *hidden)]
    for family in HEADINGS:
        members = tuple(line for line in lines if table.defenses[line.defense].family == family)
        if members:
            yield family, members


def _data(table: BoardTable) -> dict[str, Any]:
    """What the script needs to filter and to switch tiers; every other number it reads from the page itself."""
    reasons: dict[str, int] = {}
    tiers = [
        {
            "drop": tier.drop,
            "l1": tier.l1,
            "placed": [
                [place.defense, place.row, place.rank, reasons.setdefault(place.why, len(reasons))]
                for place in tier.placed
            ],
            "attacks": [_judged(line) for line in tier.attacks],
        }
        for tier in table.tiers
    ]
    return {
        "tiers": tiers,
        "reasons": list(reasons),
        "defenses": [[defense.name, defense.family] for defense in table.defenses],
        "rows": [[row.defense, *_caps_met(row)] for row in table.rows],
    }


def _judged(line: AttackLine) -> list[str]:
    """What depends on the tier in an attack's line, as text: mean stolen share, and for how many it is the worst."""
    return [_number(line.sigma), MISSING if line.worst_for is None else str(line.worst_for)]


def _caps_met(row: Row) -> list[int]:
    """How many of the accuracy's caps, and of the distance's, a setting meets, counted from the widest."""
    return [
        sum(meets(row, cap, float("inf")) for cap in DROP_CAPS),
        sum(meets(row, float("inf"), cap) for cap in L1_CAPS),
    ]


# ---------------------------------------------------------------------------------------------------- template


def _environment(paths: Mapping[str, str], records_url: str) -> jinja2.Environment:
    if urlsplit(records_url).scheme not in ("", "http", "https"):
        raise UsageError(f"{records_url!r} is no relative path and no http(s) address")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    def record_url(run_id: str) -> str | None:
        """Where a run's record is, seen from the page."""
        return f"{records_url.rstrip('/')}/{quote(paths[run_id])}" if run_id in paths else None

    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    environment.filters |= {
        "interval": _interval,
        "percent": lambda share: MISSING if share is None else f"{100 * share:.1f}",
        "number": _number,
        "count": lambda value: f"{value:,.0f}",
        "short": short_count,
        "shade": _shade,
        "record_url": record_url,
        "worst": worst_score,
        "first": lambda values, n: values[:n],
        "judged": _judged,
    }
    environment.tests["https"] = lambda url: url.startswith("https://")
    environment.globals |= {
        "nothing": MISSING,
        "flagged": FLAGGED,
        "records_page": RECORDS,
        "missing_scores": _missing_scores,
        "card": _card,
        "best": _best,
        "gate_text": gate_text,
    }
    environment.globals["listed_missing"] = LISTED_MISSING
    return environment


def _interval(estimate: Estimate | None, digits: int = 2, unit: float = 1) -> Markup:
    """Mean and half of the 95 % interval."""
    if estimate is None:
        return Markup(MISSING)
    half = "" if estimate.half is None else f" <i>± {unit * estimate.half:.{digits}f}</i>"
    return Markup(f"{unit * estimate.mean:.{digits}f}{half}")


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _shade(share: float) -> int:
    """Which of the 21 shades a share has."""
    return max(0, min(20, round(20 * share)))


def _missing_scores(table: BoardTable, row: Row) -> int:
    """Ranked columns that lack runs."""
    pairs = zip(table.columns, row.scores, strict=True)
    return sum(column.role == "ranked" and (score is None or score.n < len(table.seeds)) for column, score in pairs)


def _best(table: BoardTable, tier: Tier, defense: int) -> str:
    """A defense's stolen share at a tier, marked if something is flagged of the setting that it is of."""
    place = next((place for place in tier.placed if place.defense == defense), None)
    row = None if place is None or place.row is None else table.rows[place.row]
    share = None if row is None else worst_share(row)
    if row is None or share is None:
        return MISSING
    return marked(f"{share.mean:.2f}", row.flags)


def _card(defense: DefenseEntry) -> list[tuple[str, str]]:
    """What a defense's card says, without what it leaves open."""
    facts = [
        ("Class", HEADINGS[defense.family]),
        ("Source", defense.citation),
        ("Knob", defense.knob or ""),
        ("Needs", ", ".join(defense.needs)),
        ("Preserves", defense.preserves),
        ("Weakness", defense.weakness),
        ("Random", "yes: its runs have seeds of their own" if defense.stochastic else ""),
    ]
    return [(name, text) for name, text in facts if text]


def _source(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """A source expression of the content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
