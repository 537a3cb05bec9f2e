"""Recorded steps do what ordinary ones do. A stand-in for CUDA's recorder runs everywhere; the real one needs a GPU."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from msbench.attacks.graphs import ORDINARY_CALLS, Recorded
from msbench.targets.memory import InPieces
from torch import Tensor, nn


class Recorder:
    """Stands in for ``torch.cuda``'s: what is recorded has no effect until it is replayed, on the recorded places."""

    replayed = 0

    def __init__(self) -> None:
        self.replay: Callable[[], None] = lambda: None


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """The stand-in, in place. The step under test reaches it through ``Step.recording``."""
    monkeypatch.setattr(Recorder, "replayed", 0)

    @contextmanager
    def record(graph: Recorder) -> Iterator[None]:
        Step.recording = graph
        try:
            yield
        finally:
            Step.recording = None

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorder)
    monkeypatch.setattr(torch.cuda, "graph", record)
    return Recorder


class Step:
    """Adds its input to a total, in place, and returns the total."""

    recording: Recorder | None = None

    def __init__(self) -> None:
        self.total = torch.zeros(2)
        self.ordinary = 0

    def __call__(self, value: Tensor) -> Tensor:
        if Step.recording is not None:
            output = torch.zeros(2)

            def replay() -> None:
                Recorder.replayed += 1
                self.total += value.sum(0)
                output.copy_(self.total)

            Step.recording.replay = replay
            return output
        self.ordinary += 1
        self.total += value.sum(0)
        return self.total.clone()


def test_a_recorded_step_takes_every_input_once(recorder: type[Recorder]) -> None:
    step = Step()
    recorded = Recorded(step, ever=True)
    values = [torch.full((3, 2), float(i)) for i in range(8)]
    results = [recorded(value) for value in values]
    expected = torch.stack([3 * torch.full((2,), float(sum(range(i + 1)))) for i in range(8)])
    assert torch.equal(torch.stack(results), expected)  # each in memory of its own: later calls leave it alone
    assert (step.ordinary, recorder.replayed) == (ORDINARY_CALLS, 8 - ORDINARY_CALLS)


def test_another_shape_is_an_ordinary_call(recorder: type[Recorder]) -> None:
    step = Step()
    recorded = Recorded(step, ever=True)
    for _ in range(ORDINARY_CALLS + 1):
        recorded(torch.ones(3, 2))
    total = recorded(torch.ones(1, 2))
    assert total.tolist() == [3 * (ORDINARY_CALLS + 1) + 1] * 2
    assert (step.ordinary, recorder.replayed) == (ORDINARY_CALLS + 1, 1)


def test_a_step_that_cannot_be_recorded_stays_ordinary(
    recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Recorder:
        raise RuntimeError("operation not permitted\nand a trace")

    monkeypatch.setattr(torch.cuda, "graph", lambda graph: refuse())
    step = Step()
    recorded = Recorded(step, ever=True)
    for _ in range(ORDINARY_CALLS):
        recorded(torch.ones(3, 2))
    with pytest.warns(UserWarning, match="only slower for it: operation not permitted$"):
        recorded(torch.ones(3, 2))
    assert recorded(torch.ones(3, 2)).tolist() == [3 * (ORDINARY_CALLS + 2)] * 2
    assert (step.ordinary, recorder.replayed) == (ORDINARY_CALLS + 2, 0)


def test_memory_that_runs_out_while_recording_leaves_batches_whole(
    recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = InPieces("batches")

    def work(part: slice) -> Tensor:
        if Step.recording is not None:
            raise torch.OutOfMemoryError("no room for a pool of its own")
        return torch.ones(8)[part].sum()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: Step.recording is not None)
    recorded = Recorded(lambda values: torch.stack(pieces(work, len(values))), ever=True)
    for _ in range(ORDINARY_CALLS):
        recorded(torch.ones(8))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = recorded(torch.ones(8))
    assert [str(warning.message).partition(":")[0] for warning in caught] == [
        "a step is not recorded as a CUDA graph, only slower for it"
    ]
    assert results.tolist() == [8]
    assert pieces.size is None


def test_nothing_is_recorded_unless_asked_for(recorder: type[Recorder]) -> None:
    step = Step()
    recorded = Recorded(step, ever=False)
    for _ in range(ORDINARY_CALLS + 2):
        recorded(torch.ones(3, 2))
    assert (step.ordinary, recorder.replayed) == (ORDINARY_CALLS + 2, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_recorded_training_is_training(optimizer: Any) -> None:
    from msbench.attacks.students import build_students

    def train(recorded: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
        students = build_students([network.cuda()], optimizer=optimizer, lr=0.01, weight_decay=1e-4, recorded=recorded)
        draw = torch.Generator().manual_seed(0)
        for i in range(12):
            students.set_lr(0.01 / (1 + i))
            loss = students.learn(
                torch.rand(7 if i == 9 else 16, 1, 8, 8, generator=draw).cuda(),
                torch.randn(7 if i == 9 else 16, 10, generator=draw).cuda(),
            )
        return students.logits(torch.rand(5, 1, 8, 8, generator=draw).cuda()), loss

    for recorded, ordinary in zip(train(True), train(False), strict=True):
        torch.testing.assert_close(recorded, ordinary, atol=1e-4, rtol=1e-3)
