"""``msbench leaderboard``: scores from records, and whether records may stand on a board.

Standard output gets the data, standard error everything else. pandas and rich are imported when a table is
made, so that ``--help`` does not wait for them.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from ...errors import UsageError
from . import submission
from .build import build
from .options import store_option
from .values import parse_budget

if TYPE_CHECKING:
    from rich.console import Console

    from ...leaderboard.board import Board
    from ...leaderboard.board_report import Sheets
    from ...leaderboard.figures import Format
    from ...leaderboard.record import Record
    from ...leaderboard.score_rows import ScoreRow
    from ...leaderboard.scoring import Run

FORMATS = ("table", "markdown", "csv", "json")
TEXTS = ("markdown", "csv", "latex", "json")
PICTURES = ("png", "svg")

suite_option = click.option("--suite", metavar="NAME", help="The board of this suite.")
drop_option = click.option(
    "--drop", metavar="POINTS", type=float, help="Cap on the accuracy lost, in points: 0, 1, 2 or 5.  [1]"
)
l1_option = click.option(
    "--l1", metavar="L1", type=float, help="Cap on the mean L1 distance: 0.1, 0.2, 0.5 or 1.  [0.5]"
)
defense_option = click.option(
    "--defense", "defenses", metavar="SPEC", multiple=True, help="Put this defense on the board too.  [repeatable]"
)
folder_option = click.option(
    "--board",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Take results and entries of the board in this folder, and not the records in the store.",
)


@click.group()
def leaderboard() -> None:
    """Show scores, and check the records they come from."""


@leaderboard.command()
@suite_option
@store_option
@folder_option
@defense_option
@drop_option
@l1_option
@click.option("--target", metavar="PATTERN", help="Only these targets; * and ? stand for any characters.")
@click.option("--budget", metavar="QUERIES", type=parse_budget, help="Only this budget: 60000, 60k, 2M.")
@click.option("--protocol", metavar="VERSION", help="Only this version of the rules of measurement.")
@click.option("--format", "style", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of stdout.")
def show(
    suite: str | None,
    store: Path,
    folder: Path | None,
    defenses: tuple[str, ...],
    drop: float | None,
    l1: float | None,
    target: str | None,
    budget: int | None,
    protocol: str | None,
    style: str,
    output: Path | None,
) -> None:
    """Show each defense against each attack, and its worst case.

    With --suite: the board, which ranks what the suite's own runs tell apart, at one tier of utility. Without: all
    records in the store, in a table for each protocol, target and budget.
    """
    if suite is not None:
        if (target, budget, protocol) != (None, None, None):
            raise UsageError("a suite has its own targets, budgets and protocol: leave --target, --budget, --protocol")
        _emit_board(_sheets(_board(suite, store, folder, defenses), drop, l1), style, output)
        return
    if folder is not None or defenses or (drop, l1) != (None, None):
        raise UsageError("--board, --defense, --drop and --l1 are of a board: name its suite with --suite")
    scores = _all_scores(store, target, budget, protocol)
    if not scores:
        click.echo(f"no finished runs to show in {store}", err=True)
    _emit(scores, style, output)


@leaderboard.command()
@click.option("--suite", metavar="NAME", required=True, help="The board of this suite.")
@store_option
@folder_option
@defense_option
@drop_option
@l1_option
@click.option("--format", "style", type=click.Choice([*TEXTS, *PICTURES]), default="markdown", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="A file; for figures a folder.  [texts: stdout]")
def export(
    suite: str,
    store: Path,
    folder: Path | None,
    defenses: tuple[str, ...],
    drop: float | None,
    l1: float | None,
    style: str,
    output: Path | None,
) -> None:
    """Write a board as a text, or its figures.

    The figures: accuracy against queries, security against utility, and a heat map of stolen shares, for each table.
    """
    if style in PICTURES and output is None:
        raise UsageError("figures are files: name a folder for them with --output DIR")
    laid = _sheets(_board(suite, store, folder, defenses), drop, l1)
    if style in PICTURES and output is not None:
        _write_figures(laid, style, output)
    else:
        _emit_board(laid, style, output)


@leaderboard.command()
def schema() -> None:
    """Print the JSON Schema of a record."""
    from ...leaderboard.record import schema_text

    click.echo(schema_text(), nl=False)


def _all_scores(store: Path, target: str | None, budget: int | None, protocol: str | None) -> list["ScoreRow"]:
    from ...leaderboard.score_rows import score_rows
    from ...leaderboard.scoring import cells_of
    from ...leaderboard.store import Store

    _check_folder(store)
    return score_rows(cells_of(Store(store).each(partial(_wanted, target, budget, protocol))))


def _wanted(target: str | None, budget: int | None, protocol: str | None, record: "Record") -> "Run | None":
    from ...leaderboard.scoring import run_of

    wanted = (
        (target is None or fnmatchcase(record.spec.target.name, target))
        and budget in (None, record.spec.budget)
        and protocol in (None, record.protocol)
    )
    return run_of(record) if wanted else None


def _board(suite: str, store: Path, folder: Path | None, defenses: tuple[str, ...]) -> "Board":
    from ...leaderboard.board_entries import board_of
    from ...leaderboard.entries import submissions
    from ...leaderboard.store import Store
    from ..suite import defense_entry, load

    where = store if folder is None else folder / "results"
    _check_folder(where)
    submitted = [] if folder is None else list(submissions(folder / "entries"))
    return board_of(load(suite), Store(where).records(), submitted, map(defense_entry, defenses))


def _sheets(board: "Board", drop: float | None, l1: float | None) -> "Sheets":
    from ...leaderboard.board import SHOWN_FIRST
    from ...leaderboard.board_report import sheets

    first_drop, first_l1 = SHOWN_FIRST
    return sheets(board, first_drop if drop is None else drop / 100, first_l1 if l1 is None else l1)


def _check_folder(store: Path) -> None:
    if not store.is_dir():
        raise UsageError(f"no folder {store}: msbench run makes one, or name another with --store")


def _emit(scores: list["ScoreRow"], style: str, output: Path | None) -> None:
    from ...leaderboard import report

    texts: dict[str, Callable[[list[ScoreRow]], str]] = {
        "table": report.to_text,
        "markdown": report.to_markdown,
        "csv": report.to_csv,
        "json": report.to_json,
    }
    if console := _terminal(style, output):
        console.print(report.to_rich(scores))
    else:
        _emit_text(texts[style](scores), output)


def _emit_board(laid: "Sheets", style: str, output: Path | None) -> None:
    from ...leaderboard import board_report

    texts: dict[str, Callable[[Sheets], str]] = {
        "table": board_report.to_text,
        "markdown": board_report.to_markdown,
        "csv": board_report.to_csv,
        "latex": board_report.to_latex,
        "json": board_report.to_json,
    }
    if console := _terminal(style, output):
        console.print(board_report.to_rich(laid))
    else:
        _emit_text(texts[style](laid), output)


def _terminal(style: str, output: Path | None) -> "Console | None":
    """Where a table is shown in color and as wide as the screen; None for what goes to a file or a pipe."""
    from .display import stdout

    console = stdout()
    return console if style == "table" and output is None and console.is_terminal else None


def _emit_text(text: str, output: Path | None) -> None:
    from ...files import write_atomically

    if output is None:
        click.echo(text, nl=False)
    else:
        write_atomically(output, text)


def _write_figures(laid: "Sheets", style: str, folder: Path) -> None:
    from ...files import write_atomically
    from ...leaderboard.figures import figures

    for name, data in figures(laid.board, cast("Format", style), laid.drop, laid.l1):
        path = folder / f"{name}.{style}"
        write_atomically(path, data)
        click.echo(path)


for _command in (build, submission.check, submission.verify, submission.entry, submission.submit):
    leaderboard.add_command(_command)
