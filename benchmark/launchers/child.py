"""What happens in the process of one run.

Such a process is forked from a server that has imported this module, and with it all that is slow to import. Nothing
here may touch CUDA on import: a process forked from one that has cannot use it.
"""

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ... import components
from ...errors import Interrupted, UsageError
from ...leaderboard.record import BudgetInfo, ErrorInfo, Record, Timing
from ...leaderboard.store import Store
from ..cli.display import PlainListener
from ..environment import choose_device, environment
from ..runner import run
from ..suite import check
from .base import Outcome, reason_of
from .claims import Claim
from .job import Job

ORPHANED_SECONDS = 60.0
"""How long a run whose driver is gone may take to save its state."""

OURS = "model-stealing-bench "
"""How the origin of a built-in component begins."""

for _kind in components.GROUPS:
    for _name in components.names(_kind):
        if components.origin(_kind, _name).startswith(OURS):  # anybody else's may do anything on import
            components.load_class(_kind, _name)


class Reporter(PlainListener):
    """Tells the driver, and the log."""

    def __init__(self, budget: int, pipe: Connection) -> None:
        super().__init__(budget)
        self.pipe = pipe

    def phase(self, text: str) -> None:
        """The phase's name."""
        super().phase(text)
        self.tell("phase", text)

    def progress(self, spent: int, budget: int, losses: Mapping[str, float]) -> None:
        """Queries spent."""
        self.tell("progress", spent)

    def tell(self, what: str, value: object) -> None:
        """Send it, unless there is no driver any more."""
        with suppress(OSError):
            self.pipe.send((what, value))


def execute(job: Job, claim: Claim, pipe: Connection) -> None:
    """Do one run, and tell the driver its `Outcome`. The claim is held as long as this process lives."""
    stop = threading.Event()
    _settle_in(job, stop)
    reporter = Reporter(job.cell.info.budget, pipe)
    reporter.tell("outcome", _outcome(job, reporter, stop))
    del claim  # named here so that it lives until now


def _settle_in(job: Job, stop: threading.Event) -> None:
    """Become a process of its own: the terminal's signals go to the driver, and what is printed to the log."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=_outlive, args=(stop,), daemon=True).start()
    os.environ.clear()
    os.environ.update(job.environ)
    if job.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.gpu
    torch.set_num_threads(job.threads)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(job.log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    faulthandler.enable()


def _outlive(stop: threading.Event) -> None:
    """Wait for the driver's death; then save the state and end, or just end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        stop.set()
        time.sleep(ORPHANED_SECONDS)
        os.killpg(0, signal.SIGKILL)


def _outcome(job: Job, reporter: Reporter, stop: threading.Event) -> Outcome:
    conditions = job.conditions
    try:
        check(job.cell)
        record = run(
            job.cell.request,
            store=Store(conditions.store),
            data_dir=conditions.data_dir,
            download=conditions.download,
            device=conditions.device,
            compilation=conditions.compilation,
            listener=reporter,
            stop=stop,
        )
    except Interrupted as error:
        return Outcome(status="interrupted", reason=str(error))
    except UsageError as error:
        return Outcome(status="refused", reason=str(error))
    except Exception as error:  # a plugin may fail before there is a run whose record could say so
        traceback.print_exc()
        return bury(job, type(error).__name__, str(error), spent=0, seconds=0.0)
    return Outcome(status="done") if record.status == "done" else Outcome(status="failed", reason=reason_of(record))


# ------------------------------------------------------------------------------------------- in its stead


def bury(job: Job, kind: str, message: str, *, spent: int, seconds: float) -> Outcome:
    """Write the record of a run that could not write it itself, with the end of what it printed."""
    home, info = str(Path.home()), job.cell.info
    printed = job.log.read_text(errors="replace").splitlines() if job.log.exists() else []
    record = Record(
        protocol=info.protocol,
        run_id=job.cell.run_id,
        status="failed",
        spec=info,
        target=None,
        budget=BudgetInfo(limit=info.budget, spent=min(spent, info.budget), stop="failed"),
        stolen=None,
        paid=None,
        curve=[],
        diagnostics=None,
        flags=[],
        timing=Timing(
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            wall=round(seconds, 3),
            attack=0.0,
            evaluation=0.0,
            latency_ratio={},
            resumed=0,
            peak_memory=None,
        ),
        env=environment(choose_device(job.conditions.device), compiled=False),
        error=ErrorInfo(
            type=kind, message=message.replace(home, "~"), traceback="\n".join(printed[-50:]).replace(home, "~")
        ),
    )
    Store(job.conditions.store).save(record)
    return Outcome(status="failed", reason=reason_of(record))


def report_burial(job: Job, kind: str, message: str, spent: int, seconds: float, pipe: Connection) -> None:
    """`bury` a run in a process of its own, and tell the driver."""
    os.environ.update(job.environ)
    if job.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.gpu
    torch.set_num_threads(job.threads)
    pipe.send(("outcome", bury(job, kind, message, spent=spent, seconds=seconds)))


def report_gpus(environ: Mapping[str, str], pipe: Connection) -> None:
    """Tell how many GPUs torch finds, in a process that may touch CUDA because it ends here."""
    os.environ.clear()
    os.environ.update(environ)
    pipe.send(torch.cuda.device_count())
