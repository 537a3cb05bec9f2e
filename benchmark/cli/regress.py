"""``msbench regress``: whether attacks are as strong as they were."""

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...errors import Interrupted, UsageError
from .execute import stopping
from .options import (
    data_dir_option,
    device_option,
    download_option,
    json_option,
    slots_option,
    timeout_option,
)
from .values import parse_seeds

if TYPE_CHECKING:
    from ...leaderboard.baseline import Baseline, Comparison, Key, Planned

REGRESSION = 3
"""Exit code where strength has changed, whatever else there is."""


@click.command()
@click.option("--suite", metavar="NAME", default="ci", show_default=True, help="A suite, or a file of one.")
@click.option("--baseline", metavar="NAME_OR_FILE", help="What to compare with; the suite's own where none is given.")
@click.option("--seed", metavar="SEEDS", type=parse_seeds, help="Three seeds or more, not the suite's: 0-2, say.")
@click.option("--attack", metavar="PATTERN", multiple=True, help="Only these, as for msbench sweep; repeats.")
@click.option("--defense", metavar="PATTERN", multiple=True, help="Only against these defenses; repeats.")
@click.option("--update", is_flag=True, help="Write what is measured to the baseline instead, from 5 seeds or more.")
@click.option("--store", type=click.Path(file_okay=False, path_type=Path), help="Keep the records, and continue there.")
@slots_option
@timeout_option
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write a summary to this file.")
@click.option("--junit", type=click.Path(dir_okay=False, path_type=Path), help="Write JUnit's XML to this file.")
@device_option
@data_dir_option
@download_option
@json_option
@click.pass_context
def regress(
    ctx: click.Context,
    /,
    *,
    suite: str,
    baseline: str | None,
    seed: tuple[int, ...] | None,
    attack: tuple[str, ...],
    defense: tuple[str, ...],
    update: bool,
    store: Path | None,
    slots: int | None,
    timeout: float | None,
    markdown: Path | None,
    junit: Path | None,
    device: str,
    data_dir: Path | None,
    download: bool,
    as_json: bool,
) -> None:
    """Run a suite and compare each cell with the baseline, both ways.

    A metric that is weaker or stronger than the spread over seeds explains, even without its oddest seed, ends in exit
    code 3, and so does an attack that asks about other images than it did. A run that failed ends in exit code 1, and
    its cell is not judged. Nothing that was run before counts, but for what --store names.
    """
    from ...files import write_atomically
    from ...leaderboard.baseline import compare, path_of
    from ..launchers.base import Conditions
    from ..launchers.local import LocalLauncher
    from ..regress import Lines, as_junit, as_markdown, cells_of, key_of, run_cells
    from ..suite import load, name_of

    if baseline is None and name_of(suite) != suite:
        raise UsageError(f"the suite {suite} is a file, which has no baseline of its own: name one with --baseline")
    frozen = load(suite)
    cells = cells_of(frozen, seed, attacks=attack, defenses=defense)
    known = _known(baseline or suite, frozen.protocol, list(map(key_of, cells)), update=update)
    with ExitStack() as stack:
        folder = store or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="msbench-regress-")))
        stop = stack.enter_context(stopping())
        conditions = Conditions(store=folder, data_dir=data_dir, download=download, device=device)
        watcher = Lines(len(cells), partial(click.echo, err=True))
        launcher = LocalLauncher(conditions=conditions, slots=slots, timeout=timeout)
        runs = run_cells(cells, launcher, folder, watcher, stop)
        if stop.is_set():
            raise Interrupted("the runs that were not done" + ("" if store else "; without --store all start over"))
    if update or known is None:
        _update(path_of(baseline or suite), frozen.name, frozen.protocol, runs, known)
        return
    lines = compare(known, runs)
    for file, text in ((markdown, as_markdown(lines, runs, frozen.name)), (junit, as_junit(lines, runs, frozen.name))):
        if file is not None:
            write_atomically(file, text)
    _report(lines, runs, as_json=as_json)
    if store and not all(run.done for run in runs):
        click.echo(f"their logs lie in {store / '.logs'}", err=True)
    verdicts = {line.verdict for line in lines}
    if verdicts - {"held", "missing"}:
        ctx.exit(REGRESSION)
    if "missing" in verdicts:
        ctx.exit(1)


def _known(name: str, protocol: str, keys: "Sequence[Key]", *, update: bool) -> "Baseline | None":
    """The baseline that there is; None only where one is to be written anew.

    Raises `UsageError` for what would be refused after the runs: too few seeds, and a baseline that cannot be used.
    """
    from ...leaderboard.baseline import check_seeds, load_baseline, path_of

    if update:
        check_seeds(keys)
        return load_baseline(name) if path_of(name).exists() else None
    known = load_baseline(name)
    if known.protocol != protocol:
        raise UsageError(f"the baseline is of protocol {known.protocol}, the suite of {protocol}")
    known.check(keys)
    return known


def _update(path: Path, suite: str, protocol: str, runs: "Sequence[Planned]", known: "Baseline | None") -> None:
    from ...errors import MsbenchError
    from ...files import write_atomically
    from ...leaderboard.baseline import as_baseline, dumps

    done = sum(run.done for run in runs)
    if done < len(runs):
        raise MsbenchError(f"{len(runs) - done} of {len(runs)} runs are not done: no baseline is written")
    write_atomically(path, dumps(as_baseline(suite, protocol, runs, known)))
    click.echo(f"{path} is written, from {done} runs", err=True)


def _report(lines: "Sequence[Comparison]", runs: "Sequence[Planned]", *, as_json: bool) -> None:
    from ..regress import HEADERS, as_rows, not_done, summary
    from .display import stdout, table

    failed = not_done(runs)
    if as_json:
        found = {"lines": [asdict(line) for line in lines], "not_done": failed}
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        stdout().print(table(HEADERS, as_rows(lines)))
    for name, why in failed.items():
        click.echo(f"not done: {name}: {why}", err=True)
    click.echo(summary(lines, runs), err=True)
