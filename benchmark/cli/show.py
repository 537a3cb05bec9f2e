"""``msbench show``: everything about one component, or about one run."""

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...errors import UsageError
from .options import complete, store_option

if TYPE_CHECKING:
    from .lookup import Found


@click.command()
@click.argument(
    "name",
    nargs=-1,
    required=True,
    metavar="[KIND] NAME | RUN_ID",
    shell_complete=complete("attack", "defense", "recovery", "dataset"),
)
@store_option
def show(name: tuple[str, ...], store: Path) -> None:
    """Show a component's parameters, traits and paper, or the report of a run.

    A name that two kinds share is written KIND NAME, and so is a class in a file: defense FILE.py:CLASS. Traits
    are those of the setting: noise:per_input=true. A run is named by the twelve hexadecimal digits of its id.
    """
    if len(name) == 1 and re.fullmatch(r"[0-9a-f]{12}", name[0]):
        _show_run(name[0], store)
    else:
        from .lookup import find_one

        _show_component(find_one(name))


def _show_run(run_id: str, root: Path) -> None:
    from ...leaderboard.report import report_run
    from ...leaderboard.store import Store
    from .display import stdout

    where = Store(root)
    record = where.find(run_id)
    if record is None:
        raise UsageError(f"no run {run_id} in {root}: name another folder with --store")
    stdout().print(report_run(record, where.path_of(record)))


def _show_component(found: "Found") -> None:
    from ...components import format_spec
    from .display import stdout, table
    from .wording import parameters, reference, traits

    kind, name, cls, params = found
    component = cls.from_params(params) if params else cls
    click.echo(f"{format_spec(name, params)} ({kind}, version {cls.version}, {_origin(kind, name)})\n")
    click.echo(inspect.getdoc(cls))
    for heading, lines in {
        "Traits": traits(component),
        "Paper": [reference(cls.paper), f"BibTeX: msbench cite {kind}:{name}"] if cls.paper else [],
    }.items():
        if lines:
            click.echo(f"\n{heading}")
            click.echo("\n".join(f"  {line}" for line in lines))
    rows = parameters(cls)
    if rows:
        click.echo()
        stdout().print(table(("parameter", "type", "default", "range", "meaning"), rows))


def _origin(kind: str, name: str) -> str:
    from ...components import names, origin

    return f"from {origin(kind, name)}" if name in names(kind) else "from a file or module"
