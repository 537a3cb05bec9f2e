"""``msbench study``: measurements that inform the benchmark's own settings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...errors import UsageError
from .options import (
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
from .values import parse_budget

if TYPE_CHECKING:
    from ..studies.tune import Answers


@click.group()
def study() -> None:
    """Make the measurements that the benchmark's own settings and pages come from."""


@study.command()
@click.option("--target", metavar="DATASET/ARCHITECTURE", default="digits/lenet5", show_default=True)
@click.option("--attack", metavar="SPEC", multiple=True, default=("dualstudent",), show_default=True)
@click.option("--answers", type=click.Choice(["probabilities", "labels"]), default="probabilities", show_default=True)
@click.option("--budget", metavar="QUERIES", type=parse_budget, default="60k", show_default=True)
@click.option("--trials", metavar="N", type=click.IntRange(min=1), default=12, show_default=True)
@click.option("--seed", metavar="SEED", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default="tuning.jsonl", show_default=True)
@data_dir_option
def tune(
    target: str,
    attack: tuple[str, ...],
    answers: "Answers",
    budget: int,
    trials: int,
    seed: int,
    output: Path,
    data_dir: Path | None,
) -> None:
    """Search hyperparameters and clone architecture, with the same number of trials for every attack.

    The victim answers with probabilities, or with labels only; an attack that uses nothing but labels is always
    searched on labels. Parameters given with an attack are not searched.

    Trials are judged on charged queries that were held back, never on test data, and kept in the output file, a
    line each: the same command continues. At the end the best trial of each attack is printed as it is written in
    benchmark/hyperparameters.toml; of equals, the earliest.
    """
    from ...targets.datasets.loading import default_data_dir
    from ..studies.tune import as_table, best_of
    from ..studies.tune import tune as run_trials

    where = data_dir or default_data_dir()
    tables = []
    for name in attack:
        lines = []
        trial_lines = run_trials(
            target, name, answers=answers, budget=budget, trials=trials, seed=seed, data_dir=where, output=output
        )
        for number, line in enumerate(trial_lines, 1):
            lines.append(line)
            failed = f"  {line['error']}" if "error" in line else ""
            click.echo(
                f"{name} {number}/{trials}  score {line['score']:.4f}  {line['seconds']:.0f} s{failed}", err=True
            )
        best = best_of(lines)
        click.echo(f"{name}: trial {lines.index(best) + 1} is the best, score {best['score']:.4f}", err=True)
        tables.append(as_table(target, name, answers, best))
    click.echo("\n\n".join(tables))


# ------------------------------------------------------------------------------------------------------ pages


def _page_options(output: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of the commands that make a page."""
    options: list[Any] = [
        click.option("--only", metavar="SECTION", multiple=True, help="Run this section alone; the option repeats."),
        click.option("--render-only", is_flag=True, help="Run nothing: make the page from the records there are."),
        click.option("--dry-run", is_flag=True, help="List the runs and what they cost, and do nothing."),
        click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default=output, show_default=True),
        device_option,
        data_dir_option,
        download_option,
        slots_option,
        threads_option,
        timeout_option,
        store_option,
        quiet_option,
        progress_option,
        verbose_option,
        click.pass_context,
    ]

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return with_options


@study.command()
@_page_options("docs/attacks.md")
def attacks(ctx: click.Context, /, **options: Any) -> None:
    """Measure the attacks and recoveries, and write the page that shows them.

    What is missing of the planned runs is done in the order of importance, each run in a process of its own as in
    msbench sweep, and recorded in the store; the same command continues, and several of them share the work. The page
    is made from the records, also when runs fail or are interrupted.
    """
    _make_page("attacks", ctx, **options)


@study.command()
@_page_options("docs/defenses.md")
def defenses(ctx: click.Context, /, **options: Any) -> None:
    """Measure the defenses, and write the page that shows what each costs and withstands.

    Works as `msbench study attacks` does.
    """
    _make_page("defenses", ctx, **options)


def _make_page(
    name: str,
    ctx: click.Context,
    *,
    store: Path,
    output: Path,
    only: tuple[str, ...],
    render_only: bool,
    dry_run: bool,
    quiet: bool,
    progress: bool,
    slots: int | None,
    threads: int | None,
    timeout: float | None,
    **conditions: Any,
) -> None:
    from ...files import write_atomically
    from ...leaderboard.store import Store
    from ..launchers.base import Conditions
    from ..launchers.local import LocalLauncher
    from ..studies.pages import Campaign
    from ..sweep import due, look
    from .sweep import print_plan, run_due

    campaign, where = Campaign(name), Store(store)
    cells = campaign.due(only)
    standings = look([] if render_only else cells, where)
    runs = due(standings, retry_failed=True)
    if dry_run:
        print_plan(standings, runs, as_json=False)
        return
    if render_only and not where.root.is_dir():
        raise UsageError(f"no folder {store}: without --render-only the runs are made, or name another with --store")
    launcher = LocalLauncher(
        conditions=Conditions(store=where.root, **conditions), slots=slots, threads=threads, timeout=timeout
    )
    code = 0
    try:
        if runs:
            code = run_due(standings, runs, where, launcher, quiet=quiet, live=progress, as_json=False)
    finally:
        write_atomically(output, campaign.render(where))
        click.echo(f"{output} is written", err=True)
    ctx.exit(code)


@study.command()
@click.option("--target", metavar="DATASET/ARCHITECTURE", default="digits/lenet5", show_default=True)
@click.option("--attack", metavar="SPEC", multiple=True, default=("dualstudent", "knockoff"), show_default=True)
@click.option(
    "--defense", metavar="SPEC", multiple=True, default=("ood_gate", "prada", "hoda", "seat"), show_default=True
)
@click.option("--queries", metavar="N", type=parse_budget, default="5k", show_default=True, help="Queries recorded.")
@click.option("--length", metavar="N", type=click.IntRange(min=1), default=300, show_default=True, help="Of accounts.")
@click.option("--attackers", metavar="N", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--honest", metavar="N", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--seed", metavar="SEED", type=click.IntRange(min=0), default=0, show_default=True)
@data_dir_option
@json_option
def detection(
    target: str,
    attack: tuple[str, ...],
    defense: tuple[str, ...],
    data_dir: Path | None,
    as_json: bool,
    **settings: int,
) -> None:
    """Measure how many of an attack's accounts detectors notice, and after how many queries.

    The queries of an attack on the undefended target are recorded, mixed with none, 25, 50 and 90 % of honest ones,
    and replayed to each detector in accounts of equal length. TPR is the share that is detected at one false positive
    in a thousand, "own" what the detector's own limit gives.
    """
    from ...targets.datasets.loading import default_data_dir
    from ..studies.detection import Settings, as_table, measure

    rows = []
    for row in measure(target, attack, defense, Settings(**settings), data_dir=data_dir or default_data_dir()):
        click.echo(f"{row.defense} against {row.attack}, {row.benign_share:.0%} honest", err=True)
        rows.append(row)
    click.echo(json.dumps([row.as_dict() for row in rows], indent=2) if as_json else as_table(rows))
