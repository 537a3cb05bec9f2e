"""``msbench new``: a package to begin a component of one's own with."""

from pathlib import Path

import click

from .options import verbose_option


@click.command()
@click.argument("kind", type=click.Choice(["defense", "attack"]))
@click.argument("name")
@click.option(
    "--dir",
    "parent",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    default=".",
    help="Where the folder NAME is made, instead of here.",
)
@verbose_option
def new(kind: str, name: str, parent: Path) -> None:
    """Start a defense or an attack of one's own: a package that works as it stands.

    NAME is made of lowercase letters, digits and underscores. Nothing that is there is overwritten.
    """
    from ..scaffolding import names_for, scaffold

    folder = scaffold(kind, name, parent)
    words = names_for(name)
    spec = f"{folder / words['module']}.py:{words['cls']}"
    for path in sorted(folder.iterdir()):
        click.echo(path)
    click.echo(
        f"\nEdit {folder / words['module']}.py, then:\n"
        f"  msbench validate {kind} {spec}\n"
        f"  msbench run --{kind} {spec} --budget 20k\n"
        f"  python -m pytest {folder}",
        err=True,
    )
