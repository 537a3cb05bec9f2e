"""``msbench leaderboard``: scores from records, and whether records may stand on a board.

Standard output gets the data, standard error everything else. pandas and rich are imported when a table is
made, so that ``--help`` does not wait for them.
"""

import io
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ... import PROTOCOL
from ...errors import UsageError
from .options import store_option
from .values import parse_budget

if TYPE_CHECKING:
    import pandas as pd

    from ...leaderboard.record import Record

INVALID = 4
"""Exit code of ``check`` if any record is invalid."""

FORMATS = ("table", "markdown", "csv", "json")


@click.group()
def leaderboard() -> None:
    """Show scores, and check the records they come from."""


@leaderboard.command()
@store_option
@click.option("--target", metavar="PATTERN", help="Only these targets; * and ? stand for any characters.")
@click.option("--budget", metavar="QUERIES", type=parse_budget, help="Only this budget: 60000, 60k, 2M.")
@click.option("--protocol", metavar="VERSION", help="Only this version of the rules of measurement.")
@click.option("--format", "style", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of stdout.")
def show(
    store: Path, target: str | None, budget: int | None, protocol: str | None, style: str, output: Path | None
) -> None:
    """Show each defense against each attack, and its worst case.

    Each protocol, target and budget has a table of its own.
    """
    from ...leaderboard.scoring import cells, frame
    from ...leaderboard.store import Store

    def wanted(record: "Record") -> bool:
        return (
            (target is None or fnmatchcase(record.spec.target.name, target))
            and budget in (None, record.spec.budget)
            and protocol in (None, record.protocol)
        )

    _check_folder(store)
    scores = frame(cells(filter(wanted, Store(store).records())))
    if scores.empty:
        click.echo(f"no finished runs to show in {store}", err=True)
    _emit(scores, style, output)


@leaderboard.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(exists=True, path_type=Path))
@store_option
@click.option("--protocol", default=PROTOCOL, show_default=True, help="The version of the rules to insist on.")
def check(paths: tuple[Path, ...], store: Path, protocol: str) -> None:
    """Check the records in files and folders, or in the store.

    Schema, ranges, place, text, protocol, duplicates: a line on stdout for each problem, and exit code 4 if
    there is any.
    """
    from ...leaderboard.check import check_files

    if not paths:
        _check_folder(store)
    files = list(dict.fromkeys(_files(paths or (store,))))
    bad = set()
    for path, problem in check_files(files, protocol):
        bad.add(path)
        click.echo(f"{path}: {problem}")
    click.echo(f"{len(files)} records checked, {len(bad)} invalid", err=True)
    if bad:
        click.get_current_context().exit(INVALID)


@leaderboard.command()
def schema() -> None:
    """Print the JSON Schema of a record."""
    from ...leaderboard.record import schema_text

    click.echo(schema_text(), nl=False)


def _check_folder(store: Path) -> None:
    if not store.is_dir():
        raise UsageError(f"no folder {store}: msbench run makes one, or name another with --store")


def _files(paths: tuple[Path, ...]) -> Iterator[Path]:
    from ...leaderboard.store import record_files

    return chain.from_iterable(record_files(path) if path.is_dir() else [path] for path in paths)


def _emit(scores: "pd.DataFrame", style: str, output: Path | None) -> None:
    from ...files import write_atomically
    from ...leaderboard import report

    plain: dict[str, Callable[[pd.DataFrame], str]] = {
        "markdown": report.to_markdown,
        "csv": report.to_csv,
        "json": report.to_json,
        "table": _plain_table,
    }
    if output is not None:
        text = plain[style](scores).encode()
        write_atomically(output, lambda file: file.write(text))
    elif style == "table":
        _print_table(scores)
    else:
        click.echo(plain[style](scores), nl=False)


def _print_table(scores: "pd.DataFrame") -> None:
    from ...leaderboard.report import to_rich
    from .display import stdout

    console = stdout()
    if console.is_terminal:
        console.print(to_rich(scores))
    else:
        click.echo(_plain_table(scores), nl=False)


def _plain_table(scores: "pd.DataFrame") -> str:
    """The table without colors, as wide as it needs to be."""
    from rich.console import Console

    from ...leaderboard.report import to_rich

    page = io.StringIO()
    Console(file=page, width=10_000).print(to_rich(scores))
    return "".join(f"{line.rstrip()}\n" for line in page.getvalue().splitlines())
