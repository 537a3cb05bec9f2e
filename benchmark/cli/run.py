"""``msbench run``: a grid of runs, one after the other, in this process."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .execute import Manner, run_all
from .grid import Axes, State, describe, resolve_all, state_of
from .options import (
    Session,
    complete,
    config_text,
    data_dir_option,
    device_option,
    download_option,
    json_option,
    progress_option,
    quiet_option,
    read_config,
    store_option,
    verbose_option,
)
from .values import parse_budget, parse_seeds

if TYPE_CHECKING:
    from ...leaderboard.store import Store
    from ..spec import Plan


def _seeds_option(name: str, text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An axis of seeds."""
    return click.option(
        name, metavar="SEEDS", type=parse_seeds, multiple=True, default=("0",), show_default=True, help=text
    )


@click.command()
@click.option(
    "--target",
    metavar="DATASET/ARCHITECTURE",
    multiple=True,
    default=("digits/lenet5",),
    show_default=True,
    help="What is attacked; wildcards stand for trained targets.",
)
@click.option(
    "--defense",
    metavar="SPEC",
    multiple=True,
    default=("none",),
    show_default=True,
    shell_complete=complete("defense"),
    help="What protects it: NAME, NAME:key=value,key=value, several joined by +, or FILE.py:CLASS.",
)
@click.option(
    "--attack",
    metavar="SPEC",
    multiple=True,
    default=("dualstudent",),
    show_default=True,
    shell_complete=complete("attack"),
    help="What steals it.",
)
@click.option(
    "--recovery",
    metavar="SPEC",
    multiple=True,
    default=("none",),
    show_default=True,
    shell_complete=complete("recovery"),
    help="What the attacker does to the answers before training on them.",
)
@click.option(
    "--budget",
    metavar="QUERIES",
    type=parse_budget,
    multiple=True,
    default=("60k",),
    show_default=True,
    help="Queries allowed: 60000, 60k, 2M. One query is one image.",
)
@_seeds_option("--seed", "The attack's seeds: 0, 0-2, 0,3,5.")
@_seeds_option("--defense-seed", "The defense's own seeds.")
@_seeds_option("--target-seed", "Copies of the target: the seeds that it is trained with.")
@click.option("--clone", metavar="ARCHITECTURE", help="The clone's architecture, instead of the frozen one.")
@click.option(
    "--pool",
    metavar="DATASET",
    shell_complete=complete("dataset"),
    help="Images that pool attacks query with, instead of the target's declared pool; other attacks take none.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="What the attack computes in.",
)
@click.option(
    "--checkpoint",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The target's weights (safetensors), instead of training it.",
)
@device_option
@click.option(
    "--compile",
    "compilation",
    type=click.Choice(["auto", "off", "on"]),
    default="auto",
    show_default=True,
    help="Compile the attack's networks: minutes to start, faster from then on. auto: in long runs on a GPU.",
)
@data_dir_option
@download_option
@store_option
@click.option(
    "--force",
    is_flag=True,
    help="Run from the start, whatever is done or begun already; only what --force itself began is continued.",
)
@click.option(
    "--at-once",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs of the grid that take turns in this process: several seeds on a GPU that one does not fill.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the grid and its cost, and run nothing. What depends on the target is checked when a run starts.",
)
@click.option(
    "-c",
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=read_config,
    help='TOML file of these options: budget = "20k", attack = ["dfme", "knockoff"], …',
)
@click.option("--print-config", is_flag=True, help="Print the options in force as such a file, and run nothing.")
@json_option
@quiet_option
@progress_option
@verbose_option
@click.pass_context
def run(ctx: click.Context, /, *, store: Path, dry_run: bool, print_config: bool, **options: Any) -> None:
    """Let attacks steal a defended target, and record what they got away with.

    Options repeat, names take wildcards (--attack 'df*'), and all combinations are run. What is done already
    is taken from the store; what was interrupted is continued.

    An option is taken from the command line, else from MSBENCH_RUN_<OPTION>, else from the file of --config.
    """
    from ...leaderboard.store import Store
    from ..environment import choose_device

    if print_config:
        click.echo(config_text(ctx), nl=False)
        return
    plans = resolve_all(Axes(**{axis.name: options.pop(axis.name) for axis in fields(Axes)}))
    manner = Manner(**options, verbose=ctx.ensure_object(Session).verbose)
    where = Store(store)
    if dry_run:
        show_grid(plans, where, manner)
        return
    where.check_writable()
    choose_device(manner.device)
    ctx.exit(run_all(plans, where, manner))


def show_grid(plans: "list[Plan]", store: "Store", manner: Manner) -> None:
    """Print what each run would cost, and run nothing."""
    cells = [describe(plan) | {"state": state_of(plan, store, force=manner.force)} for plan in plans]
    counts: dict[State, int] = {"cached": 0, "unfinished": 0, "pending": 0}
    for cell in cells:
        counts[cell["state"]] += 1
    queries = sum(cell["budget"] for cell in cells if cell["state"] != "cached")
    if manner.as_json:
        click.echo(json.dumps({"runs": cells, "queries": queries, **counts}, separators=(",", ":")))
        return
    from .display import stdout, table

    headers = [key.replace("_", " ") for key in cells[0]]
    stdout().print(table(headers, [list(cell.values()) for cell in cells]))
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    click.echo(f"\n{len(cells)} runs: {summary}; at most {queries:,} queries to spend")
