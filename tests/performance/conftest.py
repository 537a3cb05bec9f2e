"""A yardstick in every timing, and a table of all of them at the end."""

import ctypes
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from operator import truediv
from typing import Protocol

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

CORES = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
SECONDS = 0.5
"""How long one measurement should take, about."""
TURNS = 3, 20, 50
"""How many turns it has at least, at least where there is a limit, and at most."""

Row = tuple[str, str, str, float, float, float, str]
ROWS = pytest.StashKey[list[Row]]()
Speed = dict[str, str]
SPEEDS = pytest.StashKey[list[Speed]]()


class Compare(Protocol):
    """Times ``call`` and ``yardstick`` in turns, so that a busy machine slows both.

    What is compared is the time an image, of which the yardstick may be given fewer, ``beside``: on a CPU processor
    time, which other processes change little. The ratio is the median of those of every turn, which scatters less
    than that of the quickest calls, each of which may have met the machine in another state. One above ``limit`` fails.
    """

    def __call__(
        self,
        call: Callable[[], object],
        yardstick: Callable[[], object],
        *,
        what: str,
        images: int,
        classes: int,
        beside: int | None = None,
        limit: float = math.inf,
    ) -> None: ...


@pytest.fixture(autouse=True)
def _all_cores(request: pytest.FixtureRequest) -> Iterator[None]:
    """Speed is measured as users meet it, with a thread a core or as many as they ask for; other tests have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(CORES if "benchmark" in request.fixturenames else before)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def compare(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Compare:
    """Times something as a multiple of a plain forward pass, noted in ``benchmark.extra_info``."""
    _keep_memory()

    def measure(
        call: Callable[[], object],
        yardstick: Callable[[], object],
        *,
        what: str,
        images: int,
        classes: int,
        beside: int | None = None,
        limit: float = math.inf,
    ) -> None:
        both = math.inf
        for _ in range(3):  # the first calls build what later ones reuse
            if both > SECONDS:
                both = _seconds(call) + _seconds(yardstick)
        few, enough, many = TURNS
        rounds = min(many, max(few if math.isinf(limit) else enough, math.ceil(SECONDS / both)))
        own: list[float] = []
        bare: list[float] = []
        benchmark.pedantic(
            lambda: own.append(_seconds(call, _clock)),
            setup=lambda: bare.append(_seconds(yardstick, _clock)),
            rounds=rounds,
            iterations=1,
        )
        if benchmark.stats is None:  # --benchmark-disable
            return
        seconds = benchmark.stats.stats.median
        ratio = statistics.median(map(truediv, own, bare)) * (beside or images) / images
        benchmark.extra_info |= {"ratio": ratio, "images_per_second": images / seconds, "threads": _where()}
        within = "" if math.isinf(limit) else f"{limit:g}" if ratio <= limit else f"{limit:g}, exceeded"
        row = (what, str(images), str(classes), 1e3 * seconds, images / seconds, ratio, within)
        request.config.stash.setdefault(ROWS, []).append(row)
        assert ratio <= limit, f"{what}: {ratio:.3g} times the yardstick, with {limit:g} as the limit"

    return measure


@pytest.fixture
def speeds(request: pytest.FixtureRequest) -> list[Speed]:
    """Where attacks' speeds are noted: column by name."""
    return request.config.stash.setdefault(SPEEDS, [])


def _keep_memory() -> None:
    """Let glibc hand no memory back: getting it anew took up to a quarter of a pass, or nothing, as chance had it."""
    if hasattr(ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # as malloc.h numbers them
        ctypes.CDLL(None).mallopt(trim_threshold, 2**30)
        ctypes.CDLL(None).mallopt(mmap_threshold, 2**25)


def _seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    _synchronize()
    started = clock()
    call()
    _synchronize()
    return clock() - started


def _clock() -> float:
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _where() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, threads: {CORES}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table, which can be pasted into a document."""
    speeds = config.stash.get(SPEEDS, [])
    if speeds:
        terminalreporter.section(f"attacks' speeds, medians ({_where()})")
        terminalreporter.line(_line(speeds[0]))
        terminalreporter.line(_line(["---"] * len(speeds[0])))
        for speed in speeds:
            terminalreporter.line(_line(speed.values()))
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section(f"medians; ratio to a plain forward pass ({_where()})")
    terminalreporter.line("| what | images | classes | ms | images/s | ratio | limit |")
    terminalreporter.line("|---|--:|--:|--:|--:|--:|--:|")
    for what, images, classes, milliseconds, rate, ratio, limit in rows:
        cells = [what, images, classes, f"{milliseconds:.3g}", f"{rate:,.0f}", f"{ratio:.3g}", limit]
        terminalreporter.line(_line(cells))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
