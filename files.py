"""Writing files so that a crash never leaves half of one.

The pattern is: temporary file in the same folder, fsync, rename. A reader sees the old file or the new one.
Temporary names start with a dot and end in ``.tmp``: a process killed between the two steps leaves such a file
behind, and no reader of ours takes it for a record or a state. Renaming is atomic on one file system, which is
why the temporary file is a neighbor of its target and not in ``/tmp``.
"""

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import Interrupted, StoreError


def write_atomically(path: Path, content: bytes | memoryview | str) -> None:
    """Write bytes, or text in UTF-8, to a temporary file beside ``path`` and rename it into place.

    Raises `StoreError` where the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not by `tempfile`, whose files none but their owner may read: a web server or a colleague must.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error


@contextmanager
def alone(path: Path, stop: threading.Event | None = None) -> Iterator[None]:
    """Keep other processes from making the same file meanwhile; its neighbor ``.lock`` is left behind.

    Where files cannot be locked each makes its own. Raises `Interrupted` where ``stop`` is set while waiting.
    """
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_suffix(".lock").open("w")
    except (ImportError, OSError):
        yield
        return
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if stop is not None and stop.is_set():
                    raise Interrupted(f"stopped while another process was making {path.name}") from None
                time.sleep(0.2)
                continue
            except OSError:  # a file system without locks
                pass
            break
        yield
