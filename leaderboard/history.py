"""What a pull request changes of a board: against a commit, or against another copy of the folder."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError

KEPT = ("results", "entries", "suites", "baselines")
"""The folders of a board that only grow."""


@dataclass(frozen=True)
class Change:
    """One file of a board that is not what it was."""

    path: Path
    before: bytes | None
    """What it held; None if it is new."""
    removed: bool


def since(board: Path, base: str) -> Iterator[Change]:
    """What changed below a board's folder since a commit, in the working tree.

    It is compared with where the branch began, since what others committed meanwhile is no change of this one.

    Raises `UsageError` outside of a repository and for a commit that is not there.
    """
    start = _git(board, "merge-base", "--end-of-options", base, "HEAD").decode().strip()
    listed = _git(board, "diff", "--name-status", "--no-renames", "--relative", "-z", start)
    words = listed.decode().split("\0")[:-1]
    for status, name in zip(words[::2], words[1::2], strict=True):
        before = None if status == "A" else _git(board, "show", f"{start}:./{name}")
        yield Change(board / name, before, status == "D")
    untracked = _git(board, "ls-files", "--others", "--exclude-standard", "-z")
    for name in untracked.decode().split("\0")[:-1]:
        yield Change(board / name, None, False)


def against(board: Path, other: Path) -> Iterator[Change]:
    """What differs from another copy of a board's folder, which is how it was."""
    if not other.is_dir():
        raise UsageError(f"no folder {other} to compare with")
    now, then = (set(_names(folder)) for folder in (board, other))
    for name in sorted(now | then):
        before = _content(other / name) if name in then else None
        if name not in now:
            yield Change(board / name, before, True)
        elif before != _content(board / name):
            yield Change(board / name, before, False)


def _names(board: Path) -> Iterator[Path]:
    """All files and links but what Python leaves where it runs."""
    for path in sorted(board.rglob("*")):
        if (path.is_file() or path.is_symlink()) and path.parent.name != "__pycache__":
            yield path.relative_to(board)


def _content(path: Path) -> bytes:
    """What git keeps of it: of a link, where it leads."""
    return os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()


def _git(board: Path, *arguments: str) -> bytes:
    try:
        return subprocess.run(["git", *arguments], cwd=board, capture_output=True, check=True).stdout
    except OSError as error:
        raise UsageError(f"git cannot be run in {board}: {error.strerror or error}") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise UsageError(f"git {arguments[0]} in {board}: {reason}") from None
