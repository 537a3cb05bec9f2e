"""Where a run happened: versions and hardware, never hostname or user."""

import hashlib
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

import timm
import torch
from torch.nn import functional as F

from .. import __version__
from ..attacks.learning import descend
from ..errors import UsageError
from ..leaderboard.record import Environment
from ..targets.architectures import build_network
from .numerics import numerics


def choose_device(asked: str) -> torch.device:
    """``auto`` takes a GPU if there is one. Raises `UsageError` for a device that is not there."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"device {asked!r} cannot be used: {reason}") from None
    return device


def environment(device: torch.device, *, compiled: bool) -> Environment:
    """The environment of this process."""
    commit, dirty = _checkout()
    return Environment(
        msbench=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        timm=timm.__version__,
        platform=f"{platform.system()} {platform.machine()}",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        compiled=compiled,
        arithmetic=arithmetic() if device.type == "cpu" else None,
        commit=commit,
        dirty=dirty,
    )


@cache
def arithmetic() -> str:
    """How this process computes on the CPU: twelve hexadecimal digits, the same only where sums are rounded alike.

    Processors of one kind, and libraries of one version, add in the same order; others end in other last digits, and
    whole runs in other clones. Two steps of training a small network tell them apart.
    """
    cpu = torch.device("cpu")
    draws = torch.Generator().manual_seed(0)
    network = build_network("lenet5:norm=batch", num_classes=10, image_shape=(1, 8, 8), seed=0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    with numerics("fp32", cpu), torch.enable_grad():
        for _ in range(2):
            images = torch.rand(64, 1, 8, 8, generator=draws)
            labels = torch.randint(10, (64,), generator=draws)
            descend(optimizer, F.cross_entropy(network(images), labels))
    weights = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    return hashlib.sha256(weights.contiguous().numpy().tobytes()).hexdigest()[:12]


def forget_peak_memory(device: torch.device) -> None:
    """Have `peak_memory` on a GPU begin anew: another run in this process may have needed more."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """The most memory in use, in bytes: allocated on a GPU since `forget_peak_memory`, or resident in this process
    since it began; None if unknown. Runs that share a process share it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose ``getrusage`` also counts the process that started this one
        kilobytes = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return 1024 * int(kilobytes[0]) if kilobytes else None
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _checkout() -> tuple[str | None, bool | None]:
    """Commit and dirtiness of the checkout this package runs from, if it is one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None, None
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit or None, None if status is None else bool(status)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
