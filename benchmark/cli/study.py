"""``msbench study``: measurements that inform the benchmark's own settings."""

from pathlib import Path

import click

from .options import data_dir_option
from .values import parse_budget


@click.group()
def study() -> None:
    """Make the measurements that the benchmark's own settings come from."""


@study.command()
@click.option("--target", metavar="DATASET/ARCHITECTURE", default="digits/lenet5", show_default=True)
@click.option("--attack", metavar="NAME", multiple=True, default=("dualstudent",), show_default=True)
@click.option("--budget", metavar="QUERIES", type=parse_budget, default="60k", show_default=True)
@click.option("--trials", metavar="N", type=click.IntRange(min=1), default=12, show_default=True)
@click.option("--seed", metavar="SEED", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default="tuning.jsonl", show_default=True)
@data_dir_option
def tune(
    target: str,
    attack: tuple[str, ...],
    budget: int,
    trials: int,
    seed: int,
    output: Path,
    data_dir: Path | None,
) -> None:
    """Search hyperparameters and clone architecture, with the same number of trials for every attack.

    Trials are judged on charged queries that were held back, never on test data, and kept in the output file, a
    line each: the same command continues. The best trial of each attack is printed at the end.
    """
    from ...targets.datasets.loading import default_data_dir
    from ..studies.tune import tune as run_trials

    where = data_dir or default_data_dir()
    for name in attack:
        lines = []
        trial_lines = run_trials(target, name, budget=budget, trials=trials, seed=seed, data_dir=where, output=output)
        for number, line in enumerate(trial_lines, 1):
            lines.append(line)
            click.echo(f"{name} {number}/{trials}  score {line['score']:.4f}  {line['seconds']:.0f} s", err=True)
        best = max(lines, key=lambda line: float(line["score"]))
        click.echo(f"{name}: score {best['score']:.4f}  clone {best['clone']}  {best['params']}")
