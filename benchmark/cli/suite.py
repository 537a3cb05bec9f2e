"""``msbench suite``: which runs the boards are made of, as they are written and as they are frozen."""

from typing import TYPE_CHECKING

import click

from ...errors import UsageError
from .list import print_suites
from .options import json_option

if TYPE_CHECKING:
    from ...leaderboard.suites import FrozenSuite

folder_option = click.option(
    "--folder",
    metavar="DIR",
    help="Images for a suite whose target has {folder} in its name: DIR/train/CLASS and DIR/test/CLASS.",
)


@click.group()
def suite() -> None:
    """List, show and freeze suites: which runs a board is made of."""


@suite.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the suites that come with msbench."""
    print_suites(as_json=as_json)


@suite.command()
@click.argument("name", metavar="SUITE")
@folder_option
@json_option
def show(name: str, folder: str | None, as_json: bool) -> None:
    """Show a suite's targets, columns and defenses.

    SUITE is a name, or a file that ends in .toml or .json.
    """
    from ...leaderboard.suites import suite_text
    from ..suite import load

    frozen = load(name, folder)
    if as_json:
        click.echo(suite_text(frozen), nl=False)
    else:
        _describe(frozen)


def _describe(frozen: "FrozenSuite") -> None:
    from .display import stdout, table

    click.echo(f"{frozen.title}, protocol {frozen.protocol}\n\n{frozen.text.strip()}")
    for each in frozen.tables:
        seeds = ", ".join(map(str, each.seeds))
        click.echo(f"\n{each.target.name}, {each.budget:,} queries, seeds {seeds}\n")
        columns = [(column.label, column.role, column.settings[0].clone) for column in each.columns]
        stdout().print(table(("column", "role", "clone"), columns))
        click.echo()
        defenses = [(entry.name, entry.family, tuple(s.spec for s in entry.settings)) for entry in each.defenses]
        stdout().print(table(("defense", "family", "settings"), defenses))


@suite.command()
@click.argument("name", metavar="SUITE")
@folder_option
@click.option("--force", is_flag=True, help="Replace a frozen suite that is not the same.")
def freeze(name: str, folder: str | None, force: bool) -> None:
    """Resolve a suite with the hyperparameters of the day, and keep it.

    Goes into the package's leaderboard/suites. A suite that is frozen already and differs is not replaced: a changed
    suite is a changed protocol.
    """
    from ...files import write_atomically
    from ...leaderboard import suites
    from ..suite import freeze as resolve_suite

    frozen = resolve_suite(name, folder)
    path, text = suites.FOLDER / f"{frozen.name}.json", suites.suite_text(frozen)
    before = path.read_text(encoding="utf-8") if path.exists() else None
    if before == text:
        click.echo(f"{path} is up to date", err=True)
        return
    if before is not None and not force:
        raise UsageError(
            f"{path} differs from what would be frozen today, and a changed suite is a changed protocol: its records "
            "and scores no longer count; --force replaces it all the same"
        )
    write_atomically(path, text)
    click.echo(f"{path} is written", err=True)
