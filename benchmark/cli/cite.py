"""``msbench cite``: BibTeX for what was run."""

import click

from .options import complete


@click.command()
@click.argument(
    "names",
    nargs=-1,
    metavar="[NAME]...",
    shell_complete=complete("attack", "defense", "recovery", "dataset"),
)
def cite(names: tuple[str, ...]) -> None:
    """Print BibTeX for components, or for msbench.

    NAME may be KIND:NAME, such as defense:topk.
    """
    from .lookup import find

    found = [component for name in names for component in find(name)]
    entries = [cls.paper.bibtex() for _, _, cls, _ in found if cls.paper is not None] if names else [_own()]
    if entries:
        click.echo("\n\n".join(dict.fromkeys(entries)))
    for kind, name, cls, _ in found:
        if cls.paper is None:
            click.echo(f"{kind} {name} has no paper: it is a control or common practice", err=True)


def _own() -> str:
    from ...components import Paper

    return Paper(
        key="msbench",
        title="msbench: a benchmark for defenses against model stealing on image classifiers",
        authors="{The msbench authors}",
        year=2026,
    ).bibtex()
