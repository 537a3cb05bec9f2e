"""The entry point: which commands there are, and what happens to what they raise.

Nothing here imports torch, pandas, pydantic or rich, so that ``msbench --help`` answers at once. A command's
module is imported when the command is called, and imports what is heavy inside its functions.
"""

import io
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from ... import __version__
from ...errors import Interrupted, MsbenchError, UnknownName, UsageError
from .options import Session, verbose_option

COMMANDS = {
    "run": "Let attacks steal a defended target, and record what they got away with.",
    "sweep": "Run a suite: every defense at its sweep against every attack.",
    "suite": "List, show and freeze suites: which runs a board is made of.",
    "list": "List attacks, defenses, recoveries, targets, data sets or suites.",
    "show": "Show a component's parameters, traits and paper, or the report of a run.",
    "new": "Start a defense or an attack of one's own: a package that works as it stands.",
    "validate": "Check that a defense or an attack keeps its contract.",
    "regress": "Run a suite and compare each cell with the baseline, both ways.",
    "leaderboard": "Show and check scores.",
    "target": "Train and list targets.",
    "study": "Make the measurements that the benchmark's own settings and pages come from.",
    "info": "Show versions, device and paths.",
    "cite": "Print BibTeX for components, or for msbench.",
}
"""Every command with its line in the help. The module of that name defines the click command of that name."""

PREFIX = "MSBENCH"

EPILOG = """\b
Exit codes:
  0    done
  1    a run or a check failed
  2    the command line, a name, a value or a file is not usable
  3    an attack's strength has regressed
  4    a leaderboard entry is not valid
  130  interrupted; the state is saved and the same command continues

\b
Every option can be set in the environment: MSBENCH_RUN_BUDGET=20k is run's --budget,
and MSBENCH_STORE, MSBENCH_DATA and MSBENCH_DEVICE hold for all commands.
Completion: eval "$(_MSBENCH_COMPLETE=bash_source msbench)", or zsh_source, fish_source.
"""


class Cli(click.Group):
    """A group that imports commands when they are called, and that answers every error with one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the help. Imports nothing."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command. Raises `UnknownName` with the nearest names."""
        if cmd_name not in COMMANDS:
            if ctx.resilient_parsing or cmd_name.startswith("-"):
                return None
            raise UnknownName("command", cmd_name, COMMANDS, hint="msbench --help shows all")
        defined = vars(import_module(f".{cmd_name}", __package__)).values()
        commands = (value for value in defined if isinstance(value, click.Command))
        command = next(command for command in commands if command.name == cmd_name)
        _name_variables(command, f"{PREFIX}_{cmd_name}")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands' section of the help, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run a command line and exit with the code that the help documents."""
        session = Session()
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                code = super().main(args, prog_name, standalone_mode=False, obj=session, **extra)
            except Exception as error:
                code = _report(error, session)
        raise SystemExit(code if isinstance(code, int) else 0)


def _name_variables(command: click.Command, prefix: str) -> None:
    """Have each option's variable named after the option, as the help says, and not after the code's parameter."""
    for option in command.params:
        if isinstance(option, click.Option):
            own = [option.envvar] if isinstance(option.envvar, str) else option.envvar or ()
            option.envvar = tuple(dict.fromkeys([*own, variable_of(option, prefix)]))
    for name, sub in command.commands.items() if isinstance(command, click.Group) else ():
        _name_variables(sub, f"{prefix}_{name}")


def variable_of(option: click.Option, prefix: str) -> str:
    """The environment variable of an option: ``MSBENCH_SWEEP_RETRY_FAILED``."""
    name = max(option.opts, key=len).lstrip("-")
    return f"{prefix}_{name}".replace("-", "_").upper()


def _report(error: Exception, session: Session) -> int:
    """Tell the user about an error in one line; returns the exit code."""
    if isinstance(error, click.ClickException):
        return _report_click(error)
    if isinstance(error, click.Abort):
        _say("stopped by the user", label="Interrupted")
        return 130
    if isinstance(error, Interrupted):
        _say(f"{error}; the same command continues", label="Interrupted")
        return 130
    if session.verbose:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if isinstance(error, UsageError):
        _say(str(error))
        return 2
    if isinstance(error, MsbenchError):
        _say(str(error))
    else:
        _say(f"{type(error).__name__}: {error} (msbench -v … shows where it comes from)")
    return 1


def _report_click(error: click.ClickException) -> int:
    message = error.format_message()
    if "\n" in message:  # a group called without a command: the message is its help
        click.echo(message, err=True)
    else:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "msbench"
        _say(f"{message} ({command} --help)")
    return error.exit_code


def _say(message: str, *, label: str = "Error") -> None:
    click.echo(f"{label}: {' '.join(message.split())}", err=True)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {' '.join(str(message).split())}", err=True)


@click.group(
    cls=Cli,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@verbose_option
@click.version_option(__version__, prog_name="msbench", message="%(prog)s %(version)s")
def cli() -> None:
    """The benchmark for defenses against model stealing on image classifiers.

    \b
    Start with:
      msbench run
      msbench run --defense topk:k=3 --attack dualstudent --budget 60k
      msbench list defenses
    """


def main() -> NoReturn:
    """The console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what its encoding lacks is escaped, as on stderr, and ends no run
        sys.stdout.reconfigure(errors="backslashreplace")
    cli.main(prog_name="msbench")
