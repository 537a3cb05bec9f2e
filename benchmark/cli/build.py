"""``msbench leaderboard build``: the page, and the same boards as data and figures beside it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from ...errors import UsageError
from .options import store_option

if TYPE_CHECKING:
    from ...leaderboard.board import Board
    from ...leaderboard.suites import FrozenSuite


@click.command()
@click.option("--suite", "suites", metavar="NAME", multiple=True, required=True, help="A board's suite.  [repeatable]")
@store_option
@click.option(
    "--board",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Take results and entries of the board in this folder, and not the records in the store.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", default="site", show_default=True
)
@click.option(
    "--records-url", metavar="URL", help="Where the page finds the records.  [their folder's place beside the page]"
)
def build(suites: tuple[str, ...], store: Path, folder: Path | None, out: Path, records_url: str | None) -> None:
    """Write the page of one or more boards into a folder.

    index.html is complete in itself. Beside it: records.html with links to all records; board.csv, board.json, board.md
    and the figures of the tier that is shown first, of more than one suite in a folder of the suite's name. The same
    records make the same bytes.
    """
    from ...files import write_atomically
    from ...leaderboard.board_entries import board_of
    from ...leaderboard.entries import submissions
    from ...leaderboard.site import RECORDS, render_page, render_records
    from ...leaderboard.store import Store, relative_path

    where = store if folder is None else folder / "results"
    if not where.is_dir():
        raise UsageError(f"no folder {where}: msbench run makes one, or name another with --store")
    records = list(Store(where).records())
    submitted = [] if folder is None else list(submissions(folder / "entries"))
    boards = [board_of(suite, records, submitted) for suite in _load(suites)]
    paths = {record.run_id: relative_path(record.spec).as_posix() for record in records}
    url = records_url or quote(Path(os.path.relpath(where, out)).as_posix())
    files: dict[str, str | bytes] = dict(_data(boards))
    downloads = [name for name in files if not name.endswith(".svg")]
    files["index.html"] = render_page(boards, paths=paths, records_url=url, downloads=downloads)
    files[RECORDS] = render_records(boards, paths=paths, records_url=url)
    for name, content in files.items():
        write_atomically(out / name, content)
    click.echo(out / "index.html")


def _load(names: Sequence[str]) -> "Iterator[FrozenSuite]":
    from ..suite import load

    seen = set()
    for suite in map(load, names):
        if suite.name in seen:
            raise UsageError(f"two suites are called {suite.name}")
        seen.add(suite.name)
        yield suite


def _data(boards: "Sequence[Board]") -> Iterator[tuple[str, str | bytes]]:
    """Names below the page's folder, with what the files hold."""
    from ...leaderboard.board_report import sheets, to_csv, to_json, to_markdown
    from ...leaderboard.figures import figures

    for board in boards:
        laid, place = sheets(board), "" if len(boards) == 1 else f"{board.suite}/"
        yield f"{place}board.csv", to_csv(laid)
        yield f"{place}board.json", to_json(laid)
        yield f"{place}board.md", to_markdown(laid)
        for name, data in figures(board, "svg"):
            yield f"{place}figures/{name}.svg", data
