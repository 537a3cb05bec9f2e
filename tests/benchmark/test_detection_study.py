"""The replay of an attack to detectors: how accounts are made up, and what the rates say of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner
from msbench.benchmark.cli.main import cli
from msbench.benchmark.studies.detection import SHARES, Replay, Settings, as_table, exceeded_by, measure, until
from msbench.defenses.base import Traits
from msbench.defenses.detection import Account, Detector
from msbench.errors import UsageError
from msbench.targets.zoo import load_target
from torch import Tensor

TINY = Settings(queries=150, length=40, attackers=6, honest=8)


@dataclass(kw_only=True)
class Brightness(Detector):
    """Suspects by the brightest pixel so far, or by the query's own."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True)

    def suspicion(self, probs: Tensor, images: Tensor, account: Account) -> Tensor:
        own = images.flatten(1).amax(dim=1).double()
        return own if self.unit == "query" else own.cummax(dim=0).values


@dataclass(kw_only=True)
class OwnBrightness(Brightness):
    unit = "query"


@pytest.fixture
def replay() -> Replay:
    """The attack's images are nearly black, but for every tenth, which is white; honest ones are gray."""
    shape = (1, 8, 8)
    recording = torch.full((150, *shape), 0.1)
    recording[9::10] = 1.0
    return Replay(load_target("digits/lenet5"), recording, torch.full((60, *shape), 0.5), TINY)


def test_accounts_are_stretches_of_the_attack_among_honest_images(replay: Replay) -> None:
    for share, accounts in replay.attacking.items():
        for account in accounts:
            attack = account[account < 150]
            assert len(attack) == 40 - round(share * 40)
            assert torch.equal(attack, torch.arange(len(attack)) + attack[0])
            honest = account[account >= 150]
            assert len(honest.unique()) == len(honest) == round(share * 40)
    assert (replay.benign >= 150).all()
    assert all(len(account.unique()) == 40 for account in replay.benign)
    assert not torch.equal(replay.benign[0], replay.benign[1])


@pytest.mark.parametrize("kind", [Brightness, OwnBrightness])
def test_rates_count_accounts_or_the_attacks_own_queries(replay: Replay, kind: type[Detector], context_for) -> None:
    detector = kind()
    detector.prepare(context_for)
    detector.limit = 0.05
    rows = list(replay.rows("recorded", "brightness", detector, replay.quiet(detector)))
    assert [row.benign_share for row in rows] == list(SHARES)
    for row, accounts in zip(rows, replay.attacking.values(), strict=True):
        white = (accounts < 150) & (accounts % 10 == 9)
        own = accounts < 150
        expected = white[own].double().mean() if kind.unit == "query" else white.any(dim=1).double().mean()
        assert row.true_positives == pytest.approx(float(expected))
        firsts = sorted(int(each.long().argmax()) + 1 if each.any() else 10**6 for each in white)
        assert row.queries_until_detection == (firsts[2] if firsts[2] < 10**6 else None)  # the lower median of six
        assert (row.deployed_true_positives, row.deployed_false_positives) == (1.0, 1.0)
        firsts = sorted(int(each.long().argmax()) + 1 for each in own)  # an honest query is no detection
        assert row.deployed_queries_until_detection == (firsts[2] if kind.unit == "query" else 1)


@pytest.fixture
def context_for():
    """All that a detector without a network takes from its context."""

    class Context:
        device = "cpu"

    return Context()


@pytest.mark.parametrize(("count", "exceeding"), [(450, 0), (999, 0), (1000, 1), (1999, 1), (2000, 2)])
def test_no_more_honest_cases_than_one_in_a_thousand_exceed_the_limit(count: int, exceeding: int) -> None:
    suspicions = torch.rand(count, generator=torch.Generator().manual_seed(0))
    limit = exceeded_by(suspicions, 0.001)
    assert int((suspicions > limit).sum()) == exceeding
    assert int((suspicions >= limit).sum()) == exceeding + 1  # and no limit below would do


def test_an_alarm_on_an_honest_query_detects_nothing(replay: Replay, context_for) -> None:
    class Darkness(OwnBrightness):
        def suspicion(self, probs: Tensor, images: Tensor, account: Account) -> Tensor:
            own = images.flatten(1).amax(dim=1).double()
            return (own == 0.5).double()  # the honest ones' gray

    detector = Darkness()
    detector.prepare(context_for)
    detector.limit = 0.5
    for row in replay.rows("recorded", "darkness", detector, torch.zeros(8)):
        assert (row.true_positives, row.queries_until_detection, row.deployed_queries_until_detection) == (
            0,
            None,
            None,
        )


def test_median_detection() -> None:
    suspicions = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    assert until(suspicions, 1.0) == 3
    assert until(suspicions[[0, 2, 2]], 1.0) is None


def test_command_prints_json_and_a_table(tmp_path: Path) -> None:
    options = {"attack": "random_noise", "defense": "prada", "queries": 150, "length": 120, "attackers": 2, "honest": 3}
    args = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = CliRunner().invoke(cli, ["study", "detection", *args, "--data-dir", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [row["benign_share"] for row in rows] == list(SHARES)
    assert all(0 <= row["true_positives"] <= 1 for row in rows)
    table = as_table(list(measure("digits/lenet5", ["random_noise"], ["prada"], TINY, data_dir=tmp_path)))
    assert len(table.splitlines()) == 6
    assert table.splitlines()[5].startswith("| random_noise | prada | account | 90% | ")


def test_what_detects_nothing_and_accounts_without_enough_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'none' detects nothing"):
        list(measure("digits/lenet5", ["random_noise"], ["none"], TINY, data_dir=tmp_path))
    with pytest.raises(UsageError, match="accounts of 1000 queries are too long: there are 450"):
        list(measure("digits/lenet5", ["random_noise"], ["prada"], Settings(length=1000), data_dir=tmp_path))
