"""A board's figures: what attacks get for their queries, what security costs, and who steals from whom.

The same board makes the same bytes: no dates, fixed identifiers in SVG, fonts that come with matplotlib. Families of
defenses keep one color and one marker everywhere, told apart also without colors; what is flagged is drawn
like the rest, and marked. Names are drawn as they are; a ``$`` in them begins no formula.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .board import DROP_CAPS, L1_CAPS, SHOWN_FIRST, Board, BoardTable, Row, Score, Tier, worst_share
from .site_charts import pareto, short_count
from .suites import Family
from .texts import FLAGGED, MISSING, SIGMA

Format = Literal["png", "svg"]

LOOKS: dict[Family, tuple[str, str]] = {
    "control": ("#000000", "s"),
    "deterministic": ("#0072B2", "o"),
    "randomized": ("#D55E00", "^"),
    "stateful": ("#009E73", "D"),
    "training": ("#CC79A7", "v"),
    "detection": ("#E69F00", "P"),
    "deterrent": ("#56B4E9", "X"),
}
"""Color and marker of each family, from the palette of Okabe and Ito."""

_COLORS = [color for color, _ in LOOKS.values()]
_DASHES = ("-", "--", ":", "-.")
_STYLE: Any = {
    "svg.hashsalt": "msbench",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_HEAT = (
    f"bold: worst case; (n=…): of so many seeds, where some are missing; {MISSING}: not run, or without a share, for a "
    f"target that\nwas attacked is no better than the floor; {FLAGGED}: flagged; *: never ranked"
)
"""What the signs in the heat map mean."""
_METADATA: dict[Format, dict[str, str | None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


def figures(
    board: Board, style: Format, drop: float = SHOWN_FIRST[0], l1: float = SHOWN_FIRST[1]
) -> Iterator[tuple[str, bytes]]:
    """All figures of a board, three a table, as names without ending and the bytes of their files.

    Args:
        drop: with ``l1`` the tier whose placed settings have curves; one of `board.DROP_CAPS`.
        l1: one of `board.L1_CAPS`.
    """
    for number, table in enumerate(board.tables, 1):
        tier = next(tier for tier in table.tiers if (tier.drop, tier.l1) == (drop, l1))
        name = f"{number}-{table.target.replace('/', '-')}-{table.budget}"
        with matplotlib.rc_context(_STYLE):
            yield f"{name}-queries", _bytes(curves(table, tier), style)
            yield f"{name}-cost", _bytes(costs(table), style)
            yield f"{name}-heat", _bytes(heat(table), style)


def _bytes(figure: Figure, style: Format) -> bytes:
    FigureCanvasAgg(figure)
    page = io.BytesIO()
    figure.savefig(page, format=style, dpi=200, metadata=_METADATA[style])
    return page.getvalue()


# ------------------------------------------------------------------------------------------ accuracy for queries


def curves(table: BoardTable, tier: Tier) -> Figure:
    """Clone accuracy against queries: every attack on the bare target, and the worst case of each placed setting."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    bare = next((row for row in table.rows if table.defenses[row.defense].name == "none"), None)
    for i, score in enumerate(filter(None, bare.scores if bare else ())):
        color, dash = _COLORS[i % len(_COLORS)], _DASHES[i % len(_DASHES)]
        _curve(left, score, color, dash, table.columns[score.column].label)
    placed = [table.rows[one.row] for one in tier.placed if one.row is not None]
    for row, label in _labeled(table, placed):
        worst = None if row.worst is None else row.scores[row.worst]
        if worst:
            color = LOOKS[table.defenses[row.defense].family][0]
            _curve(right, worst, color, "--" if row.flags else "-", label)
    left.set(title=f"Attacks on the undefended {table.target}", ylabel="clone accuracy on the test set")
    dashed = f" (dashed: flagged {FLAGGED})" if any(row.flags for row in placed) else ""
    right.set(title=f"Worst cases, drop ≤ {100 * tier.drop:g} points, L1 ≤ {tier.l1:g}{dashed}")
    for axes in (left, right):
        axes.set(xlabel="queries", xscale="log", ylim=(0, 1))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda queries, _: short_count(round(queries))))
        axes.xaxis.set_minor_formatter(NullFormatter())
        for height, what, dash in ((table.accuracy, "target", "-"), (table.floor, "floor", ":")):
            if height is not None:
                axes.axhline(height, color="0.4", linewidth=0.8, linestyle=dash)
                axes.text(1, height, what, transform=axes.get_yaxis_transform(), ha="right", va="bottom", color="0.3")
        _legend(axes)
    return figure


def _curve(axes: Axes, score: Score, color: str, dash: str, label: str) -> None:
    if not score.curve:
        return
    queries, accuracies = zip(*score.curve, strict=True)
    low, high = zip(*score.band, strict=True)
    axes.plot(queries, accuracies, color=color, linestyle=dash, linewidth=1.2, label=label)
    axes.fill_between(queries, low, high, color=color, alpha=0.15, linewidth=0)


def _labeled(table: BoardTable, rows: Iterable[Row]) -> Iterator[tuple[Row, str]]:
    """Rows with a legend's entry for the first of each family; an empty one for the others."""
    seen: set[Family] = set()
    for row in rows:
        family = table.defenses[row.defense].family
        yield row, "" if family in seen else family
        seen.add(family)


def _legend(axes: Axes) -> None:
    if any(axes.get_legend_handles_labels()[1]):
        axes.legend(fontsize=7)


# ----------------------------------------------------------------------------------------------- security's cost


def costs(table: BoardTable) -> Figure:
    """Resistance against the loss of accuracy, and against distortion, of every complete setting.

    The line is the Pareto front: settings than which none is as cheap and more resistant, flagged or not; a closed
    table has none. A setting that lacks runs is not drawn. Ringed: what is flagged. Dotted: the caps.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _cost(
        left, table, [None if row.drop is None else 100 * row.drop for row in table.rows], [100 * c for c in DROP_CAPS]
    )
    _cost(right, table, [row.l1 for row in table.rows], L1_CAPS)
    left.set(xlabel="accuracy lost, points", ylabel=f"resistance, 1 − {SIGMA} of the worst case")  # noqa: RUF001
    right.set(xlabel="mean L1 distance of released answers")
    left.set_title(f"{table.target}, {table.budget:,} queries" + ("" if table.open else " (gate closed)"))
    return figure


def _cost(axes: Axes, table: BoardTable, costs: Sequence[float | None], caps: Sequence[float]) -> None:
    drawn = [
        (cost, 1 - share.mean, row)
        for row, cost in zip(table.rows, costs, strict=True)
        if row.complete and cost is not None and (share := worst_share(row))
    ]
    rows = _labeled(table, [row for *_, row in drawn])
    for (cost, resistance, _), (row, label) in zip(drawn, rows, strict=True):
        color, marker = LOOKS[table.defenses[row.defense].family]
        axes.plot([cost], [resistance], color=color, marker=marker, markersize=5, linestyle="none", label=label)
    ringed = [(cost, resistance) for cost, resistance, row in drawn if row.flags]
    if ringed:
        label = f"flagged {FLAGGED}"
        across, up = zip(*ringed, strict=True)
        axes.scatter(across, up, s=70, facecolors="none", edgecolors="0.2", linewidths=0.8, label=label)
    for cap in caps:
        axes.axvline(cap, color="0.6", linewidth=0.6, linestyle=":", zorder=0)
    most = max([*caps, *(cost for cost, *_ in drawn)])
    axes.set(xlim=(-0.03 * most, 1.08 * most), ylim=(min([0.0, *(at for _, at, _ in drawn)]) - 0.03, 1.03))
    front = pareto((cost, resistance) for cost, resistance, _ in drawn) if table.open else []
    if front:
        axes.step(*zip(*front, strict=True), where="post", color="0.5", linewidth=0.8, zorder=0)
    for cost, resistance, row in drawn:
        if (cost, resistance) in front:
            axes.annotate(row.name, (cost, resistance), xytext=(3, 3), textcoords="offset points", fontsize=6)
    _legend(axes)


# ---------------------------------------------------------------------------------------------------- heat map


def heat(table: BoardTable) -> Figure:
    """The stolen share of each setting under each column, with n where seeds are missing; gray where there is none."""
    rows = [row for row in table.rows if any(row.scores)]
    labels = [column.label + ("" if column.role == "ranked" else " *") for column in table.columns]
    figure = Figure(figsize=(2.5 + 0.7 * len(labels), 1.8 + 0.24 * max(len(rows), 8)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    values = [[score.sigma.mean if score and score.sigma else float("nan") for score in row.scores] for row in rows]
    if values:
        image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        figure.colorbar(image, label=f"stolen share {SIGMA}")
    for i, row in enumerate(rows):
        for j, score in enumerate(row.scores):
            weight = "bold" if j in row.worst_cases else "normal"
            color = "white" if values[i][j] < 0.5 else "black"
            text = _cell(score, len(table.seeds))
            axes.text(j, i, text, ha="center", va="center", fontsize=6, color=color, weight=weight)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_title(f"{table.target}, {table.budget:,} queries")
    figure.supxlabel(_HEAT, fontsize=6)
    return figure


def _cell(score: Score | None, seeds: int) -> str:
    if score is None or score.sigma is None:
        return MISSING
    return f"{score.sigma.mean:.2f}" + ("" if score.n >= seeds else f" (n={score.n})")
