"""The geometry of the page's figures: where each mark stands in its drawing, which is 480 units wide and 330 high.

The template draws what is computed here as inline SVG. Nothing is ranked here: only settings with all their runs are
drawn against utility, and the front of the best is left out while the table's gate is closed.
"""

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from .board import DROP_CAPS, L1_CAPS, SHOWN_FIRST, BoardTable, Row, Score, meets, worst_share

LEFT, RIGHT, TOP, BOTTOM = 46, 468, 14, 286
LABELED_RIGHT = 344
"""Where the plot ends if names stand beside its lines."""
LABEL_GAP = 14

_DROP_TICKS = (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
_L1_TICKS = (0, 0.1, 0.2, 0.5, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Cap:
    """Where a tier ends."""

    value: float
    at: float
    shown: bool
    """Whether it is the cap of the tier shown first."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One setting: what it costs and how well it resists."""

    row: int
    x: float
    y: float
    within: bool
    """Whether it meets both caps of the tier shown first."""


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Resistance against one kind of cost."""

    title: str
    axis: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    caps: tuple[Cap, ...]
    dots: tuple[Dot, ...]
    front: str
    """Path through the settings that no other beats in both; empty while the gate is closed."""
    kind: str
    """``drop`` or ``l1``."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One accuracy curve."""

    key: int
    """A column's or a row's position."""
    name: str
    path: str
    band: str
    """Outline of the range over seeds."""
    readings: str
    """``queries:percent`` for every vertex of the path, separated by spaces."""
    label_y: float | None
    shown: bool


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Clone accuracy against queries."""

    title: str
    kind: str
    """``attacks`` or ``defenses``: what the lines' keys count."""
    right: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    target_y: float | None
    floor_y: float
    lines: tuple[Line, ...]


def worst_score(row: Row) -> Score | None:
    """The score of a row's worst case."""
    return None if row.worst is None else row.scores[row.worst]


def undefended_row(table: BoardTable) -> Row | None:
    """The bare target's row."""
    return next((row for row in table.rows if table.defenses[row.defense].name == "none"), None)


# ------------------------------------------------------------------------------------------ security and utility


def scatters(table: BoardTable) -> tuple[Scatter, Scatter]:
    """Resistance against the loss of accuracy, and against the distance of the answers."""
    return (
        _scatter(table, "drop", "Resistance against accuracy lost", "accuracy lost, points", DROP_CAPS),
        _scatter(table, "l1", "Resistance against distortion", "mean L1 distance of released answers", L1_CAPS),
    )


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, resistance) pairs that no other pair beats: cheapest first, each more resistant than the last."""
    front: list[tuple[float, float]] = []
    for cost, resistance in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or resistance > front[-1][1]:
            front.append((cost, resistance))
    return front


def _scatter(table: BoardTable, kind: str, title: str, axis: str, caps: Sequence[float]) -> Scatter:
    unit, ticks, first = (100, _DROP_TICKS, SHOWN_FIRST[0]) if kind == "drop" else (1, _L1_TICKS, SHOWN_FIRST[1])
    known = list(_measured(table, kind))
    most = 1.05 * max([*caps, *(cost for _, cost, _ in known)])
    least = min([0.0, *(resistance for _, _, resistance in known)])

    def x(cost: float) -> float:
        # The square root keeps the tiers apart, which all lie near zero, without cutting off what is far away.
        return round(LEFT + (RIGHT - LEFT) * math.sqrt(cost / most), 1)

    def y(resistance: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (resistance - least) / (1 - least), 1)

    corners = pareto((cost, resistance) for _, cost, resistance in known) if table.open else []
    steps = [f"H{x(cost)}V{y(resistance)}" for cost, resistance in corners[1:]]
    start = [f"M{x(corners[0][0])},{y(corners[0][1])}", *steps, f"H{RIGHT}"] if corners else []
    return Scatter(
        title=title,
        axis=axis,
        x_ticks=tuple(Tick(at=x(value), label=f"{unit * value:g}") for value in ticks if value <= most),
        y_ticks=tuple(Tick(at=y(value / 5), label=f"{value / 5:.1f}") for value in range(6)),
        caps=tuple(Cap(value=cap, at=x(cap), shown=cap == first) for cap in caps),
        dots=tuple(
            Dot(row=i, x=x(cost), y=y(resistance), within=meets(table.rows[i], *SHOWN_FIRST))
            for i, cost, resistance in known
        ),
        front="".join(start),
        kind=kind,
    )


def _measured(table: BoardTable, kind: str) -> Iterable[tuple[int, float, float]]:
    """Position, cost and resistance of the rows that are complete: a missing run is no merit."""
    for i, row in enumerate(table.rows):
        cost, share = row.drop if kind == "drop" else row.l1, worst_share(row)
        if row.complete and cost is not None and share is not None:
            yield i, cost, 1 - share.mean


# ------------------------------------------------------------------------------------------------------- curves


def attack_curves(table: BoardTable) -> Curves:
    """Every attack on the undefended target, its name beside its end."""
    undefended = undefended_row(table)
    found = [score for score in undefended.scores if score and score.curve] if undefended else []
    named = [(score.column, table.columns[score.column].label, score, True) for score in found]
    return _curves(table, "Attacks on the undefended target", "attacks", named)


def defense_curves(table: BoardTable, placed: Container[int | None], shown: Container[int | None]) -> Curves:
    """The worst case of every setting placed at some tier; those in ``shown`` are seen until a script shows others."""
    named = []
    for i, row in enumerate(table.rows):
        score = worst_score(row)
        if i in placed and score is not None and score.curve:
            named.append((i, row.setting, score, i in shown))
    return _curves(table, "Worst cases at this tier", "defenses", named)


def _curves(table: BoardTable, title: str, kind: str, named: list[tuple[int, str, Score, bool]]) -> Curves:
    right = LABELED_RIGHT if kind == "attacks" else RIGHT
    first = min((score.curve[0][0] for _, _, score, _ in named), default=1)
    low, high = math.log(max(first, 1)), math.log(max(table.budget, first + 1, 2))

    def x(queries: int) -> float:
        return round(LEFT + (right - LEFT) * (math.log(max(queries, 1)) - low) / (high - low), 1)

    def y(accuracy: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * accuracy, 1)

    ends = _spread([y(score.curve[-1][1]) for _, _, score, _ in named]) if kind == "attacks" else [None] * len(named)
    lines = [
        Line(
            key=key,
            name=name,
            path="M" + "L".join(f"{x(queries)},{y(accuracy)}" for queries, accuracy in score.curve),
            band=_outline([x(queries) for queries, _ in score.curve], [(y(low), y(high)) for low, high in score.band]),
            readings=" ".join(f"{queries}:{100 * accuracy:.1f}" for queries, accuracy in score.curve),
            label_y=end,
            shown=shown,
        )
        for (key, name, score, shown), end in zip(named, ends, strict=True)
    ]
    return Curves(
        title=title,
        kind=kind,
        right=right,
        x_ticks=tuple(Tick(at=x(value), label=short_count(value)) for value in _decades(first, table.budget)),
        y_ticks=tuple(Tick(at=y(value / 5), label=f"{20 * value}") for value in range(6)),
        target_y=None if table.accuracy is None else y(table.accuracy),
        floor_y=y(table.floor),
        lines=tuple(lines),
    )


def _outline(across: Sequence[float], heights: Sequence[tuple[float, float]]) -> str:
    low = [f"{x},{least}" for x, (least, _) in zip(across, heights, strict=True)]
    high = [f"{x},{most}" for x, (_, most) in zip(across, heights, strict=True)]
    return f"M{'L'.join(low + high[::-1])}Z"


def _decades(first: int, last: int) -> list[int]:
    """One, two and five times the powers of ten from first to last, thinned to at most seven."""
    every = [factor * 10**power for power in range(10) for factor in (1, 2, 5)]
    within = [value for value in every if first <= value <= last]
    return within if len(within) <= 7 else [value for value in within if str(value)[0] == "1"]


def _spread(heights: list[float]) -> list[float | None]:
    """Heights of labels, moved apart until none covers another, and kept inside the drawing."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed: list[float | None] = [None] * len(heights)
    last = -math.inf
    for i in order:
        last = max(heights[i], last + LABEL_GAP)
        placed[i] = last
    excess = max(0.0, last - (BOTTOM + LABEL_GAP))
    return [None if at is None else round(at - excess, 1) for at in placed]


def short_count(count: int) -> str:
    """A number of queries in a few characters: 950, 15k, 2M."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
