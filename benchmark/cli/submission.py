"""Commands of ``msbench leaderboard`` for those who submit to a board, and for those who check what was submitted."""

import shlex
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ... import PROTOCOL
from ...errors import UsageError
from .options import data_dir_option, device_option, download_option, store_option, verbose_option

if TYPE_CHECKING:
    from ...leaderboard.board_check import Findings
    from ...leaderboard.entries import Submission
    from ...leaderboard.history import Change
    from ...leaderboard.record import Record

INVALID = 4
"""Exit code if a record or an entry is invalid."""

_HOME = Path(__file__).parents[2] / "leaderboard"
_folder = click.Path(file_okay=False, path_type=Path)
board_option = click.option(
    "--board",
    type=_folder,
    metavar="DIR",
    default=_HOME,
    envvar="MSBENCH_BOARD",
    help="The board's folder, with entries and results.  [leaderboard/ of the checkout]",
)


# --------------------------------------------------------------------------------------------------- checking


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(exists=True, path_type=Path))
@store_option
@click.option(
    "--board",
    type=_folder,
    metavar="DIR",
    help="Check a whole board instead: its entries, and that each record is a run that a suite or an entry asks for.",
)
@click.option("--base", metavar="COMMIT", help="With --board: nothing committed by then may be removed or changed.")
@click.option("--against", type=_folder, metavar="DIR", help="The same, compared with another copy of the board.")
@click.option("--protocol", default=PROTOCOL, show_default=True, help="The version of the rules to insist on.")
@verbose_option
@click.pass_context
def check(
    ctx: click.Context,
    paths: tuple[Path, ...],
    store: Path,
    board: Path | None,
    base: str | None,
    against: Path | None,
    protocol: str,
) -> None:
    """Check the records in files and folders, in the store, or a board.

    Schema, ranges, place, text, protocol, duplicates, numbers that contradict each other: a line on stdout for each
    problem, and exit code 4 if there is any. A record that was made up consistently is not found here, but by
    msbench leaderboard verify. What an entry says of components that are installed is compared with their code; files
    that it names are never run.
    """
    if board is not None:
        if paths or (base and against):
            raise UsageError("--board takes no PATH, and one of --base and --against")
        _check_folder(board)
        _tell(_check_board(board, protocol, base, against))
        return
    if base or against:
        raise UsageError("--base and --against compare boards: name one with --board")
    from ...leaderboard.check import check_files

    if not paths:
        _check_folder(store)
    files = list(dict.fromkeys(_files(paths or (store,))))
    bad = set()
    for path, problem in check_files(files, protocol):
        bad.add(path)
        _say(f"{path}: {problem}")
    click.echo(f"{len(files)} records checked, {len(bad)} invalid", err=True)
    if bad:
        ctx.exit(INVALID)


def _check_board(board: Path, protocol: str, base: str | None, against: Path | None) -> "Findings":
    from ...leaderboard import history
    from ...leaderboard.board_check import check_board

    changes: Iterator[Change] = iter(())
    if base is not None:
        changes = history.since(board, base)
    elif against is not None:
        changes = history.against(board, against)
    found = check_board(board, protocol, changes)
    if found.submissions:
        _compare_with_code(found)
    return found


def _compare_with_code(found: "Findings") -> None:
    """What entries say of installed components, where there is what these need."""
    try:
        from ..submission import misstated
    except ModuleNotFoundError as error:
        found.notes.append(f"entries are not compared with the code of what is installed: {error}")
        return
    for path, submission in found.submissions.items():
        found.problems += ((path, problem) for problem in misstated(submission))


def _tell(found: "Findings") -> None:
    """Problems on stdout, what else a reviewer should know on stderr; exits with 4 if there are problems."""
    for note in found.notes:
        _say(note, err=True)
    for path, problem in found.problems:
        _say(f"{path}: {problem}")
    click.echo(f"{found.records} records and {found.entries} entries checked, {len(found.problems)} problems", err=True)
    if found.problems:
        click.get_current_context().exit(INVALID)


def _say(text: str, *, err: bool = False) -> None:
    """One line of printable characters, for others' texts are in it: terminals and CI jobs obey some of them."""
    from ...leaderboard.texts import visible

    click.echo(visible(text), err=err)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}: msbench run makes a store, or name another with --store or --board")


def _files(paths: tuple[Path, ...]) -> Iterator[Path]:
    from ...leaderboard.store import record_files

    return chain.from_iterable(record_files(path) if path.is_dir() else [path] for path in paths)


# --------------------------------------------------------------------------------------------------- verifying


@click.command()
@click.argument("path", metavar="RECORD", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--times",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How often: first under the record's seed, then under fresh ones, which tell how far seeds spread.",
)
@click.option(
    "--code",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder of the files that the record names, FILE.py:CLASS. Their code is run.",
)
@data_dir_option
@download_option
@device_option
@verbose_option
@click.pass_context
def verify(
    ctx: click.Context, path: Path, times: int, code: Path | None, data_dir: Path | None, download: bool, device: str
) -> None:
    """Run a record's run again and compare.

    Where versions, threads, rounding and the target's weights are the record's, every number must be equal, bit for
    bit. Elsewhere the clone must lie within what seeds explain, those of --times and those beside the record, and so
    must what honest users pay, or be the same but for rounding where neither chance nor the attack have a part in it.
    An entry that the record belongs to is compared with its code.

    Exit code 0 if the record holds, 4 if it does not, 2 if nothing is decided: then more --times are needed.
    """
    from ...leaderboard.store import load
    from ..verify import verify as run_again

    record = load(path)
    seeds, entries = list(_beside(path, record)), list(_entries(path, record))
    verdict = run_again(
        record, times=times, code=code, seeds=seeds, data_dir=data_dir, download=download, device=device
    )
    wrong = list(_misstated(entries, record, code))
    for line in wrong:
        _say(line)
    for difference in verdict.differences:
        _say(difference)
    _say(f"{record.run_id}: {verdict.outcome}: {verdict.text}", err=True)
    if verdict.outcome == "undecided" and not wrong:
        raise UsageError("nothing is decided")
    ctx.exit(0 if verdict.holds and not wrong else INVALID)


def _beside(path: Path, record: "Record") -> Iterator["Record"]:
    """Records of the same folder, which holds all seeds of a cell."""
    from ...leaderboard.store import Store

    return (each for each in Store(path.resolve().parent).records() if each.run_id != record.run_id)


def _entries(path: Path, record: "Record") -> Iterator["Submission"]:
    """The entries that the record belongs to, if it lies in a board's folder."""
    from ...leaderboard.entries import submissions

    board = next((folder.parent for folder in path.resolve().parents if folder.name == "results"), None)
    return (each for each in submissions(board / "entries") if each.is_of(record.spec)) if board else iter(())


def _misstated(entries: Sequence["Submission"], record: "Record", code: Path | None) -> Iterator[str]:
    """What is wrong with entries whose code was run."""
    from ..submission import misstated
    from ..verify import components_of

    for each in entries:
        wrong = misstated(each, code, components_of(record))
        yield from (f"{each.entry.name}.json: {problem}" for problem in wrong)


# -------------------------------------------------------------------------------------------------- submitting


@click.command()
@click.option("--suite", metavar="SUITE", required=True, help="The suite that was run, or is to be.")
@click.option("--defense", metavar="SPEC", help="The defense, FILE.py:CLASS or a name; it enters at its sweep.")
@click.option("--attack", metavar="SPEC", help="The attack, if that is what is submitted.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A new file instead of stdout.")
@verbose_option
def entry(suite: str, defense: str | None, attack: str | None, output: Path | None) -> None:
    """Write an entry to fill in, for msbench leaderboard submit."""
    from ..submission import template

    if (defense is None) == (attack is None):
        raise UsageError("an entry is of a defense or of an attack: give --defense or --attack")
    text = template("defense", defense, suite) if defense else template("attack", attack or "", suite)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{output} is there already: nothing was written") from None
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror or error}") from None
    click.echo(f"{output} is written: fill in what is empty, then msbench leaderboard submit {output}", err=True)


def _expect_no_others(records: Sequence[Path], name: str) -> None:
    """Refuse to leave records of an earlier attempt behind, which no check would let pass."""
    for record in records:
        click.echo(shlex.join(["rm", str(record)]))
    if records:
        raise UsageError(
            f"{len(records)} records on the board are of {name} as it was before, and nothing will ask for them: the "
            "commands above delete them. Where they were merged they stay: then enter this under another name"
        )


@click.command()
@click.argument("path", metavar="ENTRY", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@store_option
@board_option
@click.option("--dry-run", is_flag=True, help="Check and say what is missing, and write nothing.")
@verbose_option
@click.pass_context
def submit(ctx: click.Context, path: Path, store: Path, board: Path, dry_run: bool) -> None:
    """Put an entry and its records into the board's folder.

    ENTRY is a TOML file; msbench leaderboard entry writes one to fill in. Checked before anything is written: the entry
    against its code, that its runs are there, each record by itself, what stands on the board under the entry's name,
    and the contract suite. Checked afterwards: the whole board, as by msbench leaderboard check --board. What is found
    then ends in exit code 4, and what was written stays. Prints the commands that are left to do.
    """
    from ...leaderboard.store import Store
    from ..submission import broken_promises, check_checkout, collect, commands, publishing, superseded, write

    _check_folder(board)
    if not dry_run:
        check_checkout(board)
    bundle = collect(path, Store(store), board)
    if bundle.missing and not bundle.submission.entry.partial:
        for command in commands(bundle, store):
            click.echo(command)
        raise UsageError(
            f"{len(bundle.missing)} of {len(bundle.missing) + len(bundle.records)} runs are missing in {store}: the "
            "commands above run them, or the entry says partial = true"
        )
    _expect_no_others(superseded(bundle, board), bundle.name)
    broken = list(broken_promises(bundle.submission))
    for line in broken:
        click.echo(line)
    if broken:
        ctx.exit(INVALID)
    if dry_run:
        click.echo(f"{len(bundle.records)} records are ready, {len(bundle.missing)} are missing", err=True)
        return
    written = write(bundle, board)
    _tell(_check_board(board, PROTOCOL, None, None))
    click.echo(f"{len(written)} files written; from the repository's root:", err=True)
    for command in publishing(bundle, board):
        click.echo(command)
