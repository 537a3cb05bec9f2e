"""Options that several commands take, and the file that can set a command's options."""

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ...errors import UnknownName, UsageError


@dataclass
class Session:
    """What one call of the program remembers from its options until its end."""

    verbose: bool = False
    """Errors show where they come from."""


def _set_verbose(ctx: click.Context, _: click.Parameter, verbose: bool) -> None:
    session = ctx.find_object(Session)
    if session is not None:
        session.verbose |= verbose


verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_set_verbose,
    help="Show tracebacks of errors.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on stdout and everything else on stderr."
)
store_option = click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    default="runs",
    envvar="MSBENCH_STORE",
    show_default=True,
    help="Folder of the records.",
)
slots_option = click.option(
    "--slots", metavar="N", type=click.IntRange(min=1), help="Runs at a time.  [one per GPU, else per core]"
)
threads_option = click.option(
    "--threads", metavar="N", type=click.IntRange(min=1), help="Threads of each run.  [1; GPUs share cores]"
)
timeout_option = click.option(
    "--timeout", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True), help="Kill a run after it."
)
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    envvar="MSBENCH_DATA",
    help="Folder of the data sets.",
)
download_option = click.option(
    "--download/--no-download",
    default=True,
    envvar="MSBENCH_DOWNLOAD",
    show_default=True,
    help="Whether data sets that are absent may be downloaded.",
)
device_option = click.option(
    "--device",
    metavar="DEVICE",
    default="auto",
    envvar="MSBENCH_DEVICE",
    show_default=True,
    help="Where to compute: auto, cpu, cuda, cuda:1, …",
)
quiet_option = click.option("-q", "--quiet", is_flag=True, envvar="MSBENCH_QUIET", help="Show no progress.")
progress_option = click.option(
    "--progress/--no-progress",
    default=True,
    envvar="MSBENCH_PROGRESS",
    help="Show a live display where stderr is a terminal, or plain lines only.",
)

Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def complete(*kinds: str) -> Completer:
    """Shell completion with the names of components, from their entry points alone."""

    def names(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
        from ...components import names as offered

        return sorted({name for kind in kinds for name in offered(kind) if name.startswith(incomplete)})

    return names


# --------------------------------------------------------------------------------------------- config files


def read_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Callback of ``--config``: values from a TOML file stand between the environment and the defaults.

    Keys are the command's long options without their dashes. Raises `UsageError` for a file that cannot be
    read and `UnknownName` for a key that is no option.
    """
    if path is None:
        return
    options = _settable(ctx.command)
    defaults = {}
    for key, value in _parse(path).items():
        option = options.get(key.replace("_", "-"))
        if option is None:
            raise UnknownName("key", key, options, hint=f"{path}; {ctx.command_path} --help shows all options")
        defaults[option.name] = _value(option, key, value, path)
    ctx.default_map = defaults


def config_text(ctx: click.Context) -> str:
    """The options in force as a TOML file that `read_config` reads back."""
    chosen = {key: ctx.params.get(option.name or "") for key, option in _settable(ctx.command).items()}
    return "".join(f"{key} = {_toml(value)}\n" for key, value in chosen.items() if value is not None)


def _settable(command: click.Command) -> dict[str, click.Option]:
    """A command's options by the key that sets them in a file."""
    options = [param for param in command.params if isinstance(param, click.Option) and param.expose_value]
    named = {max(option.opts, key=len).lstrip("-"): option for option in options}
    named.pop("print-config", None)  # a file that asks for itself to be printed would never run
    return named


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a TOML file: {error}") from None


def _value(option: click.Option, key: str, value: Any, path: Path) -> Any:
    """What click would have found on the command line: text, or a list of them if the option repeats."""
    if isinstance(value, dict) or (isinstance(value, list) and not option.multiple):
        raise UsageError(f"{key} in {path} is not usable: it takes one value, not {json.dumps(value, default=str)}")
    if isinstance(value, list):
        return [str(item) for item in value]
    text = value if isinstance(value, bool) and option.is_flag else str(value)
    return [text] if option.multiple else text


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        flat = [item for part in value for item in (part if isinstance(part, tuple) else (part,))]
        return f"[{', '.join(map(_toml, flat))}]"
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value, ensure_ascii=False)
