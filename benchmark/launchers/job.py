"""What is sent to the process of a run. No torch: the driver has no use for it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ..spec import Cell
from .base import Conditions

CHILD = f"{__package__}.child"
"""The module whose functions are called there."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that the process of a run has to know."""

    cell: Cell
    conditions: Conditions
    threads: int
    gpu: str | None
    """What the process sees of the machine's GPUs, as CUDA_VISIBLE_DEVICES says it; None leaves that alone."""
    log: Path
    """Takes what the run prints."""
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """The driver's, which the server may have been started before."""


def call(name: str, *arguments: Any) -> None:
    """Call a function of `CHILD`, whose import costs nothing where the server has done it."""
    getattr(import_module(CHILD), name)(*arguments)
