"""A yardstick in every timing, and a table of all of them at the end."""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

CORES = os.cpu_count() or 1
SECONDS = 0.5
"""How long one measurement should take, about."""

Row = tuple[str, str, str, float, float, float]
ROWS = pytest.StashKey[list[Row]]()
Speed = dict[str, str]
SPEEDS = pytest.StashKey[list[Speed]]()


class Compare(Protocol):
    """Times ``call`` and ``yardstick`` in turns, so that a busy machine slows both.

    What is compared is the time an image, of which the yardstick may be given fewer, ``beside``.
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
    ) -> None: ...


@pytest.fixture(autouse=True)
def _all_cores(request: pytest.FixtureRequest) -> Iterator[None]:
    """Speed is measured as users meet it, with a thread a core; other tests have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(CORES if "benchmark" in request.fixturenames else before)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def compare(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Compare:
    """Times something as a multiple of a plain forward pass, noted in ``benchmark.extra_info``."""

    def measure(
        call: Callable[[], object],
        yardstick: Callable[[], object],
        *,
        what: str,
        images: int,
        classes: int,
        beside: int | None = None,
    ) -> None:
        both = math.inf
        for _ in range(3):  # the first calls build what later ones reuse
            if both > SECONDS:
                both = _seconds(call) + _seconds(yardstick)
        rounds = min(50, max(3, math.ceil(SECONDS / both)))
        bare: list[float] = []
        benchmark.pedantic(
            lambda: _seconds(call), setup=lambda: bare.append(_seconds(yardstick)), rounds=rounds, iterations=1
        )
        if benchmark.stats is None:  # --benchmark-disable
            return
        seconds = benchmark.stats.stats.median
        ratio = seconds / statistics.median(bare) * (beside or images) / images
        benchmark.extra_info |= {"ratio": ratio, "images_per_second": images / seconds, "threads": _where()}
        row = (what, str(images), str(classes), 1e3 * seconds, images / seconds, ratio)
        request.config.stash.setdefault(ROWS, []).append(row)

    return measure


@pytest.fixture
def speeds(request: pytest.FixtureRequest) -> list[Speed]:
    """Where attacks' speeds are noted: column by name."""
    return request.config.stash.setdefault(SPEEDS, [])


def _seconds(call: Callable[[], object]) -> float:
    _synchronize()
    started = time.perf_counter()
    call()
    _synchronize()
    return time.perf_counter() - started


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _where() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {CORES} threads"


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
    terminalreporter.line("| what | images | classes | ms | images/s | ratio |")
    terminalreporter.line("|---|--:|--:|--:|--:|--:|")
    for what, images, classes, milliseconds, rate, ratio in rows:
        terminalreporter.line(f"| {what} | {images} | {classes} | {milliseconds:.3g} | {rate:,.0f} | {ratio:.3g} |")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
