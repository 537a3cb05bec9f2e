"""``msbench info``: what a report of a problem should contain."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from ... import PROTOCOL, __version__
from .options import data_dir_option, json_option, store_option

_PACKAGES = ("torch", "torchvision", "timm", "pydantic", "pandas", "scikit-learn", "scipy", "click", "rich")


@click.command()
@store_option
@data_dir_option
@json_option
def info(store: Path, data_dir: Path | None, as_json: bool) -> None:
    """Show versions, device and paths."""
    sections: dict[str, dict[str, Any]] = {
        "msbench": {"version": __version__, "protocol": PROTOCOL},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "device": _device(),
        "paths": _paths(store, data_dir),
    }
    if as_json:
        click.echo(json.dumps(sections, indent=2))
        return
    for title, values in sections.items():
        click.echo(title)
        for key, value in values.items():
            click.echo(f"  {key:<13} {value}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "gpus": ", ".join(gpus) or "none",
        "cuda": torch.version.cuda,
    }


def _paths(store: Path, data_dir: Path | None) -> dict[str, str]:
    from ...targets.datasets.loading import default_data_dir
    from ...targets.zoo import zoo_dir

    return {
        "records": str(store.expanduser().absolute()),
        "data sets": str(data_dir or default_data_dir()),
        "targets": str(zoo_dir()),
    }
