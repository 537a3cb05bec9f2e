"""Claims: of all drivers that share a store, one at a time executes a run.

A claim is a lock (flock) on ``STORE/.claims/RUNID``. The driver takes it and hands a copy to the process that runs:
the kernel lets go of it when the last of the two is gone, however they end, so nothing ever has to be cleaned up, and
no second driver can slip in between a run's death and the record of it. A file that is no longer needed is removed
while its lock is held; who had it open already notices that and asks again.
"""

import os
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from ...leaderboard.store import CLAIMS


class Claim:
    """The right to execute one run. Sent to a process that is being started, it is held there as well."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.handle = handle

    @classmethod
    def take(cls, root: Path, run_id: str) -> "Claim | None":
        """Claim a run of the store in ``root``, or return None if somebody else holds it."""
        import fcntl

        path = root / CLAIMS / run_id
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return None
            if _is_still(handle, path):
                return cls(path, handle)
            os.close(handle)

    def release(self) -> None:
        """Let go of it, here and in the process that it was sent to."""
        import fcntl

        self.path.unlink(missing_ok=True)
        fcntl.flock(self.handle, fcntl.LOCK_UN)
        os.close(self.handle)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.path, reduction.DupFd(self.handle))


def _received(path: Path, handle: Any) -> Claim:
    return Claim(path, handle.detach())


def _is_still(handle: int, path: Path) -> bool:
    """Whether the file that was locked is the one that has the name now."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
