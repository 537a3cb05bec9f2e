"""Replay: what it keeps, in which order, and in how much memory."""

from collections.abc import Sequence

import pytest
import torch
from msbench.attacks.replay import Replay, quantize
from msbench.benchmark.checks import stored
from torch import Tensor

CPU = torch.device("cpu")
SHAPE = (1, 2, 2)


def numbered(*numbers: int) -> tuple[Tensor, Tensor]:
    """Images and answers that say which they are."""
    values = torch.tensor(numbers).view(-1, 1, 1, 1)
    return values.expand(-1, *SHAPE) / 255, values.view(-1, 1).expand(-1, 3).float()


def kept(replay: Replay) -> list[int]:
    return sorted(replay.images[: len(replay), 0, 0, 0].tolist())


def test_the_oldest_are_overwritten_first() -> None:
    replay = Replay(5, SHAPE, 3, CPU)
    assert len(replay) == 0
    replay.add(*numbered(1, 2, 3))
    assert (len(replay), kept(replay)) == (3, [1, 2, 3])
    replay.add(*numbered(4, 5, 6, 7))
    assert (len(replay), kept(replay)) == (5, [3, 4, 5, 6, 7])
    replay.add(*numbered(*range(10, 22)))
    assert kept(replay) == [17, 18, 19, 20, 21]
    replay.add(*numbered(30))
    assert kept(replay) == [18, 19, 20, 21, 30]


def test_a_sample_is_what_was_kept_with_its_answers() -> None:
    replay = Replay(50, SHAPE, 3, CPU)
    replay.add(*numbered(7, 200, 31))
    images, answers = replay.sample(3000, torch.Generator().manual_seed(0))
    assert images.shape == (3000, *SHAPE)
    numbers = (images * 255).round()
    assert torch.equal(numbers, answers[:, :1, None, None].expand_as(numbers))
    counts = torch.bincount(answers[:, 0].long(), minlength=201)[[7, 31, 200]]
    assert int(counts.sum()) == 3000
    assert all(900 < int(count) < 1100 for count in counts)
    again, _ = replay.sample(3000, torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


def test_quantized_images_come_back_exactly() -> None:
    images = quantize(torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert float((images * 255 - (images * 255).round()).abs().max()) < 1e-4
    replay = Replay(64, (3, 8, 8), 3, CPU)
    replay.add(images, torch.arange(64.0).view(-1, 1).expand(-1, 3))
    found, answers = replay.sample(200, torch.Generator().manual_seed(2))
    assert torch.equal(found, images[answers[:, 0].long()])


def test_a_million_color_images_take_little_memory() -> None:
    replay = Replay(1_000_000, (3, 32, 32), 10, torch.device("meta"))
    assert replay.nbytes() == 1_000_000 * (3 * 32 * 32 + 4 * 10)
    assert replay.nbytes() <= 3.2e9


@pytest.mark.parametrize(("numbers", "expected"), [((), [4, 5]), ((1, 2, 3), [2, 3, 4, 5]), (range(9), [4, 5, 7, 8])])
def test_state_round_trips(numbers: Sequence[int], expected: list[int]) -> None:
    whole, resumed = Replay(4, SHAPE, 3, CPU), Replay(4, SHAPE, 3, CPU)
    for number in numbers:
        whole.add(*numbered(number))
    resumed.load_state_dict(stored(whole.state_dict()))
    for replay in (whole, resumed):
        replay.add(*numbered(4, 5))
        assert kept(replay) == expected
    for ours, theirs in zip(*(replay.take(torch.arange(len(expected))) for replay in (whole, resumed)), strict=True):
        assert torch.equal(ours, theirs)


def test_state_takes_as_much_room_as_what_is_kept() -> None:
    replay = Replay(1000, SHAPE, 3, CPU)
    replay.add(*numbered(1, 2, 3))
    state = replay.state_dict()
    assert (len(state["images"]), len(state["answers"])) == (3, 3)
    assert state["images"].untyped_storage().nbytes() == 3 * 4  # not a view of all there is room for
    replay.images.zero_()
    assert state["images"].amax() == 3
