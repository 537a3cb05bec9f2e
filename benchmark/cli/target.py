"""``msbench target``: the models that are attacked."""

from itertools import product
from pathlib import Path

import click

from .list import print_targets
from .options import (
    data_dir_option,
    device_option,
    download_option,
    json_option,
    progress_option,
    quiet_option,
    verbose_option,
)
from .values import parse_seeds


@click.group()
def target() -> None:
    """Train and list targets."""


@target.command("list")
@click.argument("pattern", default="*")
@json_option
def list_(pattern: str, as_json: bool) -> None:
    """List the targets that come with msbench and those trained so far."""
    print_targets(pattern, as_json=as_json)


@target.command()
@click.argument("names", nargs=-1, required=True, metavar="DATASET/ARCHITECTURE...")
@click.option(
    "--seed",
    "seeds",
    metavar="SEEDS",
    type=parse_seeds,
    default="0",
    show_default=True,
    help="Copies to train: 0, 0-2, 0,3,5.",
)
@device_option
@data_dir_option
@download_option
@quiet_option
@progress_option
@verbose_option
def train(
    names: tuple[str, ...],
    seeds: tuple[int, ...],
    device: str,
    data_dir: Path | None,
    download: bool,
    quiet: bool,
    progress: bool,
) -> None:
    """Train targets that neither come with msbench nor are cached yet; a run does so by itself on first use."""
    from ...targets.zoo import describe_target, load_target
    from ..environment import choose_device
    from ..numerics import numerics
    from .display import listening
    from .execute import stopping

    for name in names:  # a typo in the last name must not cost the training of the first
        describe_target(name, None, max(seeds))
    where = choose_device(device)
    with stopping() as stop:
        for name, seed in product(names, seeds):
            with listening(0, quiet=quiet, live=progress) as listener, numerics("fp32", where):
                loaded = load_target(
                    name, seed=seed, data_dir=data_dir, download=download, device=where, listener=listener, stop=stop
                )
            where_from = f"seed {seed}  {loaded.path}" if loaded.path else "pretrained"
            click.echo(f"{name}  accuracy {loaded.card.accuracy:.1%}  {where_from}".replace("%", " %"))
