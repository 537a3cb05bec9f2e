"""Refusals and flags on their way from a defense into the record, and accounts on their way to a defense."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msbench.benchmark import evaluation
from msbench.benchmark.evaluation import Evaluator
from msbench.benchmark.spec import RunSpec
from msbench.benchmark.traffic import Traffic
from msbench.defenses.base import Chain, Defense, Traits, Verdict, load_defense
from msbench.defenses.deployment import Deployment
from msbench.leaderboard.record import Detection, Record
from msbench.leaderboard.report import report_run
from msbench.targets.datasets.base import TensorImages
from msbench.targets.datasets.embedded import Digits
from msbench.targets.target import Target
from rich.console import Console
from torch import Tensor, nn

CLASSES = 3


@dataclass(kw_only=True)
class Bouncer(Defense):
    """Flags images with a bright first pixel, and refuses those with a bright second pixel too."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, needs=("account",), stage="detection")

    def __post_init__(self) -> None:
        self.heard: list[str | None] = []

    def attend(self, account: str | None) -> None:
        self.heard.append(account)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        bright = images.flatten(1)[:, :2] > 0.5
        self.flagged, self.refused = bright[:, 0], bright.all(dim=1)
        return torch.where(self.refused[:, None], torch.full_like(probs, 1 / probs.shape[1]), probs)

    def verdict(self) -> Verdict | None:
        return Verdict(self.flagged, self.refused)


@dataclass(kw_only=True)
class Registrar(Bouncer):
    """Keeps a list of who asked."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True, needs=("account",), stage="detection")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: list[str | None] = []

    def attend(self, account: str | None) -> None:
        super().attend(account)
        self.seen.append(account)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


class Slow(Defense):
    """Does some work for each batch."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=True)

    def __init__(self, work: Callable[..., None]) -> None:
        self.work = work

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        self.work()
        return probs


@dataclass(kw_only=True)
class OtherBouncer(Bouncer):
    """Flags and refuses by the third pixel alone."""

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        self.flagged = self.refused = images.flatten(1)[:, 2] > 0.5
        return torch.where(self.refused[:, None], torch.full_like(probs, 1 / probs.shape[1]), probs)


def target() -> Target:
    """Always certain of class 0, which is also what ``argmax`` makes of a uniform answer."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.tensor([5.0, 0.0, 0.0]))
    return Target(network, mean=(0.0,), std=(1.0,), num_classes=CLASSES, image_shape=(1, 8, 8)).eval()


def images(*first_pixels: tuple[int, ...]) -> Tensor:
    pixels = torch.zeros(len(first_pixels), 64)
    for row, values in zip(pixels, first_pixels, strict=True):
        row[: len(values)] = torch.tensor(values).float()
    return pixels.view(-1, 1, 8, 8)


def text_of(report: object) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(report)
    return capture.get()


def evaluator(defense: Defense, pixels: Tensor) -> Evaluator:
    test = TensorImages((pixels * 255).byte(), torch.zeros(len(pixels), dtype=torch.long))
    return Evaluator(Deployment(target(), defense), Digits(), test, None, "0123456789ab")


def test_a_refused_query_counts_as_wrong_even_where_a_tie_would_be_right() -> None:
    measured = evaluator(Bouncer(), images((0, 0), (1, 0), (1, 1), (1, 1)))
    assert measured.accuracy == 1.0
    assert measured.defended_accuracy() == 0.5
    paid = measured.paid(Traffic(measured.deployment, "attacker"), before=1.0)
    assert (paid.defended_accuracy, paid.argmax_changed) == (0.5, 0.5)
    assert (paid.flagged, paid.refused) == (0.75, 0.5)
    sure = math.exp(5) / (math.exp(5) + 2)
    assert paid.ece == pytest.approx((2 * (1 - sure) + 2 / 3) / 4, abs=1e-6)  # what was refused was not right
    assert measured.milestone(target(), 10).defended_accuracy == 0.5


def test_what_detects_nothing_has_no_detection() -> None:
    measured = evaluator(load_defense("none"), images((0, 0), (1, 1)))
    traffic = Traffic(measured.deployment, "attacker")
    traffic.answer(images((1, 1)))
    paid = measured.paid(traffic, before=1.0)
    assert (paid.defended_accuracy, paid.flagged, paid.refused) == (1.0, None, None)
    assert traffic.detection() is None


def test_honest_users_go_by_names_where_accounts_are_told_apart_and_leave_no_trace() -> None:
    defense = Registrar()
    measured = evaluator(defense, images(*[(0, 0)] * 1500))
    defense.seen = ["attacker"]
    for _ in range(2):
        measured.defended_accuracy()
    first, second = defense.heard[:2], defense.heard[2:]
    assert first == second  # whenever a run is stopped and continued in between
    names = [name for name in first if name]
    assert len(set(names)) == len(names) == len(first) == 2  # 1,024 images a name
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in names)
    assert defense.seen == ["attacker"]


def test_how_much_slower_the_deployed_path_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def costs(seconds: float) -> Callable[..., None]:
        return lambda *_: clock.__setitem__(0, clock[0] + seconds)

    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: clock[0])
    measured = evaluator(Slow(work=costs(3.0)), images((0, 0)))
    measured.deployment.target.register_forward_hook(costs(1.0))
    assert measured.latency_ratio() == {"1": 4.0, "256": 4.0}


@pytest.mark.parametrize(("after", "change"), [(52.5, 0.5), (52.5, 2.0), (152.5, 0.5), (152.5, 2.0)])
def test_a_machine_that_changes_its_speed_changes_no_ratio(
    monkeypatch: pytest.MonkeyPatch, after: float, change: float
) -> None:
    clock = [0.0]

    def costs(seconds: float) -> Callable[..., None]:
        return lambda *_: clock.__setitem__(0, clock[0] + seconds * (change if clock[0] > after else 1))

    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: clock[0])
    measured = evaluator(Slow(work=costs(3.0)), images((0, 0)))
    measured.deployment.target.register_forward_hook(costs(1.0))
    assert measured.latency_ratio() == {"1": 4.0, "256": 4.0}


def test_answers_about_data_are_surer_than_those_about_other_images() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].weight[0, 0] = 5.0  # the brighter the first pixel, the surer
        network[1].bias.zero_()
    bright = Target(network, mean=(0.0,), std=(1.0,), num_classes=CLASSES, image_shape=(1, 8, 8)).eval()
    test, outside = (
        TensorImages((images(*pixels) * 255).byte(), torch.zeros(len(pixels), dtype=torch.long))
        for pixels in ([(1,), (1,), (1,), (0,)], [(0,), (0,)])
    )
    measured = Evaluator(Deployment(bright, load_defense("none")), Digits(), test, outside, "0123456789ab")
    paid = measured.paid(Traffic(measured.deployment, "attacker"), before=1.0)
    assert paid.auroc == (3 + 0.5) / 4


def test_honest_users_are_newcomers_and_the_attack_is_one_account() -> None:
    defense = Bouncer()
    measured = evaluator(defense, images((0, 0)))
    measured.defended_accuracy()
    measured.latency_ratio()
    assert set(defense.heard) == {None}
    defense.heard.clear()
    Traffic(measured.deployment, "attacker").answer(images((0, 0)))
    assert defense.heard == ["attacker"]


@given(st.lists(st.lists(st.sampled_from([(0, 0), (1, 0), (1, 1)]), min_size=1, max_size=5), min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_the_attacks_flags_are_counted_whatever_the_batches(batches: list[list[tuple[int, int]]]) -> None:
    traffic = Traffic(Deployment(target(), Bouncer()), "attacker")
    for batch in batches:
        traffic.answer(images(*batch))
    asked = [query for batch in batches for query in batch]
    flagged = [place for place, query in enumerate(asked, 1) if query[0]]
    assert traffic.detection() == Detection(
        flagged=len(flagged), refused=asked.count((1, 1)), first_flagged=flagged[0] if flagged else None
    )


def test_counts_survive_a_restart() -> None:
    traffic, second = (Traffic(Deployment(target(), Bouncer()), "attacker") for _ in range(2))
    traffic.answer(images((0, 0), (1, 0)))
    second.load_state_dict(traffic.state_dict())
    second.answer(images((1, 1)))
    assert second.detection() == Detection(flagged=2, refused=1, first_flagged=2)


@pytest.mark.parametrize("after", ["topk:k=2", "rounding:decimals=1", "temperature"])
def test_no_later_link_answers_what_one_refused(after: str) -> None:
    chain = Chain(links=[Bouncer(), load_defense(after)])
    probs = torch.rand(3, CLASSES, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    released = chain.release(probs, images((0, 0), (1, 1), (0, 0)))
    assert torch.equal(released[1], torch.full((CLASSES,), 1 / CLASSES))
    assert torch.equal(released[[0, 2]], load_defense(after).release(probs[[0, 2]], images((0, 0), (0, 0))))


def test_who_asks_is_told_to_the_links_that_declare_that_they_have_to_know() -> None:
    told, untold = Bouncer(), Bouncer()
    untold.declare(needs=())
    Deployment(target(), Chain(links=[told, untold])).serve(images((0, 0)), "somebody")
    assert (told.heard, untold.heard) == (["somebody"], [None])


def test_a_chain_tells_every_link_who_asks_and_joins_their_verdicts() -> None:
    links = [Bouncer(), load_defense("none"), OtherBouncer()]
    chain = Chain(links=links)
    chain.attend("somebody")
    assert [link.heard for link in links if isinstance(link, Bouncer)] == [["somebody"]] * 2
    chain.release(torch.full((4, CLASSES), 1 / CLASSES), images((0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 0, 1)))
    verdict = chain.verdict()
    assert verdict is not None
    assert verdict.flagged.tolist() == [False, True, True, True]
    assert verdict.refused.tolist() == [False, False, True, True]
    assert Chain(links=[load_defense("none")] * 2).verdict() is None


@pytest.mark.parametrize("refused", [False, True])
def test_agreement_with_released_answers_needs_an_answer(refused: bool) -> None:
    measured = evaluator(Bouncer(), images((1, int(refused))))
    stolen = measured.stolen(target(), [measured.milestone(target(), 10)], seed=0)
    assert (stolen.agreement, stolen.agreement_released) == (1.0, 1.0 - refused)


def test_a_record_holds_what_was_detected(steal: Callable[..., Record], brief: None) -> None:
    spec = RunSpec(defense="ood_gate:false_positives=0.1", attack="random_noise", budget=300)
    record = steal(spec)
    assert record.status == "done"
    assert record.paid is not None and record.diagnostics is not None
    detection = record.diagnostics.detection
    assert detection is not None
    assert 0 < detection.flagged == detection.refused <= 300
    assert detection.first_flagged is not None and 1 <= detection.first_flagged <= 300
    assert 0 < record.paid.flagged == record.paid.refused < 0.3
    assert record.paid.defended_accuracy <= record.target.accuracy
    assert "attack flagged" in text_of(report_run(record))
    assert "… clone before" in text_of(report_run(record))
