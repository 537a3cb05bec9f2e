"""``msbench sweep``: all runs of a suite, some at a time, each in a process of its own."""

import json
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...errors import Interrupted
from .execute import stopping
from .grid import describe
from .options import (
    complete,
    data_dir_option,
    device_option,
    download_option,
    json_option,
    progress_option,
    quiet_option,
    slots_option,
    store_option,
    threads_option,
    timeout_option,
    verbose_option,
)
from .suite import folder_option
from .values import parse_seeds

if TYPE_CHECKING:
    from ...leaderboard.store import Store
    from ..launchers.base import Due
    from ..launchers.local import LocalLauncher
    from ..spec import Cell
    from ..sweep import Standing
    from .sweep_display import Tally


@click.command()
@click.argument("suite", metavar="SUITE")
@click.option(
    "--defense",
    "defenses",
    metavar="SPEC",
    multiple=True,
    shell_complete=complete("defense"),
    help="Only these, wildcards allowed. One that the suite lacks (FILE.py:CLASS) enters at its declared sweep.",
)
@click.option(
    "--attack",
    "attacks",
    metavar="SPEC",
    multiple=True,
    shell_complete=complete("attack"),
    help="Only these columns, wildcards allowed: 'df*', 'dualstudent + argmax'.",
)
@click.option("--seed", "seeds", metavar="SEEDS", type=parse_seeds, multiple=True, help="Only these of its seeds.")
@click.option(
    "--retry-failed/--only-missing",
    default=False,
    help="Whether runs that failed are run again. They are left alone unless asked for: a seeded run fails again.",
)
@slots_option
@threads_option
@timeout_option
@folder_option
@click.option("--dry-run", is_flag=True, help="Print what there is to do and what it costs, and run nothing.")
@store_option
@data_dir_option
@download_option
@device_option
@click.option("--compile", "compilation", type=click.Choice(["auto", "off", "on"]), default="auto", show_default=True)
@json_option
@quiet_option
@progress_option
@verbose_option
@click.pass_context
def sweep(ctx: click.Context, /, *, store: Path, dry_run: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Run a suite: every defense at its sweep against every attack.

    SUITE is a name (msbench suite list), or a file: .toml as it is written, or .json as it is frozen. Each run is a
    process of its own: one that fails, crashes or runs out of time leaves a record that says so, and the others go on.
    What is done already is taken from the store, and the same command continues. Several of these commands, on
    machines that share the store and its locks, share the work: no run is done twice.

    Your own defense, against all that the suite has: msbench sweep smoke --defense path/to/file.py:MyDefense
    """
    from ...leaderboard.store import Store
    from ..launchers.base import Conditions
    from ..launchers.local import LocalLauncher
    from ..suite import asked_targets, load, plans
    from ..sweep import choose, due, expect_runs, look

    name, folder = options["suite"], options["folder"]
    seeds = [seed for part in options["seeds"] for seed in part]
    chosen = choose(load(name, folder), defenses=options["defenses"], attacks=options["attacks"], seeds=seeds)
    where = Store(store)
    cells = plans(chosen, asked_targets(name, folder))
    expect_runs(cells, chosen, [*options["attacks"], *options["defenses"]])
    standings = look(cells, where)
    runs = due(standings, retry_failed=options["retry_failed"])
    launcher = LocalLauncher(
        conditions=Conditions(
            store=where.root,
            data_dir=options["data_dir"],
            download=options["download"],
            device=options["device"],
            compilation=options["compilation"],
        ),
        slots=options["slots"],
        threads=options["threads"],
        timeout=options["timeout"],
    )
    if dry_run:
        print_plan(standings, runs, as_json=as_json)
        return
    ctx.exit(run_due(standings, runs, where, launcher, quiet=quiet, live=options["progress"], as_json=as_json))


# ---------------------------------------------------------------------------------------------------- dry run


def print_plan(standings: "list[Standing]", runs: "list[Due]", *, as_json: bool) -> None:
    """What is done, what there is to do, and what that costs."""
    from ..sweep import estimate

    counts = Counter(each.state for each in standings)
    queries = sum(run.cell.info.budget for run in runs)
    cost = estimate(standings, runs)
    if as_json:
        cells = [describe(each.cell) | {"state": each.state} for each in standings]
        summary: dict[str, Any] = {"runs": cells, "states": dict(counts), "due": len(runs), "queries": queries}
        summary |= {"seconds": round(cost.seconds, 1), "runs_of_unknown_seconds": cost.unknown}
        click.echo(json.dumps(summary, separators=(",", ":")))
        return
    _print_columns(standings, runs)
    states = ", ".join(f"{counts[state]} {state}" for state in ("done", "failed", "unfinished", "missing"))
    click.echo(f"\n{len(standings)} runs: {states}; {len(runs)} to do, at most {queries:,} queries")
    if runs and len(runs) == cost.unknown:
        click.echo("no estimate of the time: nothing alike is done yet")
    elif runs:
        rest = f", and {cost.unknown} runs of which none is like one that is done" if cost.unknown else ""
        click.echo(f"about {_span(cost.seconds)} of computing, to be divided among the slots{rest}")


def _print_columns(standings: "list[Standing]", runs: "list[Due]") -> None:
    """A line for each target, budget, attack and recovery."""
    from .display import stdout, table

    def column(cell: "Cell") -> tuple[str, int, str, str]:
        return cell.request.target, cell.request.budget, cell.request.attack, cell.request.recovery

    total, done = Counter(column(each.cell) for each in standings), Counter[tuple[str, int, str, str]]()
    done.update(column(each.cell) for each in standings if each.state == "done")
    left = Counter(column(run.cell) for run in runs)
    rows = [(*key, count, done[key], left[key], left[key] * key[1]) for key, count in total.items()]
    stdout().print(table(("target", "budget", "attack", "recovery", "runs", "done", "to do", "queries"), rows))


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


# -------------------------------------------------------------------------------------------------------- run


def run_due(
    standings: "list[Standing]",
    runs: "list[Due]",
    store: "Store",
    launcher: "LocalLauncher",
    *,
    quiet: bool,
    live: bool,
    as_json: bool,
) -> int:
    """Have the runs done and tell how they ended. Returns the exit code; raises `Interrupted` after a signal."""
    from .sweep_display import Tally, watching

    store.check_writable()
    tally = Tally(standings, runs)
    if runs:
        with stopping() as stop, watching(tally, quiet=quiet, live=live) as watcher:
            launcher.launch(runs, watcher, stop)
            stopped = stop.is_set()
        if as_json:
            _print_records(runs, store)
        if stopped or tally.counts["interrupted"]:
            raise Interrupted(f"{tally.done} of {len(standings)} runs done, {tally.left} left; states are saved")
    return _conclude(tally)


def _conclude(tally: "Tally") -> int:
    """Name what failed. Returns 2 if a run could not begin as asked, else 1 if one has failed, else 0."""
    from .sweep_display import line

    click.echo(f"{tally.done} of {tally.total} runs done", err=True)
    bad = [(cell, outcome) for cell, outcome in tally.outcomes.values() if outcome.status != "done"]
    for cell, outcome in bad:
        word = "failed" if outcome.status == "failed" else "could not begin"
        click.echo(f"Error: {line(cell)} {word}: {outcome.reason}", err=True)
    for each in tally.left_alone:
        click.echo(f"Error: {line(each.cell)} failed before: {each.reason}", err=True)
    if tally.left_alone:
        click.echo(f"{len(tally.left_alone)} failed runs were left alone; --retry-failed runs them again", err=True)
    if any(outcome.status == "refused" for _, outcome in bad):
        return 2
    return 1 if bad or tally.left_alone else 0


def _print_records(runs: "list[Due]", store: "Store") -> None:
    """The records of the runs that were due, a line each, as ``msbench run --json`` has them."""
    for run in runs:
        record = store.get(run.cell.info)
        if record is not None:
            data = record.model_dump(mode="json")
            click.echo(json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
