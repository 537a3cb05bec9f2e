"""The targets that come with msbench: whole, as good as their cards say, and attacked before any other."""

import hashlib
import shutil
from pathlib import Path

import pytest
from msbench.errors import BadCheckpoint
from msbench.leaderboard import suites
from msbench.targets import reference, zoo
from msbench.targets.reference import FOLDER, cards, digests
from msbench.targets.training import RECIPES, accuracy
from msbench.targets.zoo import cached_targets, describe_target, load_target

CARDS = list(cards())


class Deaf:
    """A listener that fails the test as soon as anything is trained."""

    def phase(self, text: str) -> None:
        pytest.fail(text)

    def training(self, epoch: int, epochs: int, loss: float) -> None:
        pytest.fail("a target is trained")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSBENCH_HOME", str(tmp_path / "home"))


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all weights, which may be changed."""
    folder = shutil.copytree(FOLDER, tmp_path / "weights")
    monkeypatch.setattr(zoo, "FOLDER", folder)
    return folder


def test_three_copies_of_each_small_target_come_with_msbench() -> None:
    assert [(card.name, card.seed) for card in CARDS] == [
        (f"{dataset}/lenet5", seed) for dataset in ("digits", "fashion_mnist", "mnist") for seed in range(3)
    ]
    assert len({card.digest for card in CARDS}) == len(CARDS)


def test_every_file_is_what_a_card_says() -> None:
    weights = [hashlib.sha256(path.read_bytes()).hexdigest() for path in FOLDER.glob("*/*.safetensors")]
    assert sorted(weights) == sorted(card.digest for card in CARDS)


@pytest.mark.parametrize("seed", range(3))
def test_a_copy_is_loaded_and_not_trained_and_as_accurate_as_its_card_says(seed: int) -> None:
    loaded = load_target("digits/lenet5", seed=seed, listener=Deaf())
    assert loaded.card.seed == seed
    assert loaded.card.digest == digests("digits/lenet5", RECIPES["digits"].version)[seed]
    test = loaded.dataset.load("test", data_dir=Path(), download=False, device="cpu")
    assert accuracy(loaded.target, test) == pytest.approx(loaded.card.accuracy, abs=1 / len(test))  # rounding
    assert list(cached_targets()) == []


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_images_are_classified_as_the_card_says(name: str, real: Path) -> None:
    loaded = load_target(f"{name}/lenet5", data_dir=real, download=False, listener=Deaf())
    test = loaded.dataset.load("test", data_dir=real, download=False, device="cpu")
    assert accuracy(loaded.target, test) == pytest.approx(loaded.card.accuracy, abs=3 / len(test))


def test_a_run_names_such_a_target_as_any_other() -> None:
    version = RECIPES["digits"].version
    assert describe_target("digits/lenet5", None, 1) == {
        "name": "digits/lenet5", "version": version, "params": {"seed": 1},
    }  # fmt: skip


def test_another_recipe_is_another_target() -> None:
    assert digests("digits/lenet5", "0") == digests("digits/resnet18_8x", "1") == {}


def test_a_damaged_file_is_refused_rather_than_trained_anew(copied: Path) -> None:
    (path,) = [path for path in copied.glob("digits/*.json") if (card := reference.read_card(path)) and card.seed == 0]
    weights = path.with_suffix(".safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BadCheckpoint, match="install msbench again"):
        load_target("digits/lenet5", listener=Deaf())


def test_a_damaged_card_is_passed_over_in_lists(copied: Path) -> None:
    next(copied.glob("mnist/*.json")).write_text("{")
    assert len(list(cards(copied))) == len(CARDS) - 1


@pytest.mark.parametrize("name", ["ci", "smoke", "small"])
def test_suites_on_small_images_name_the_weights_of_every_seed(name: str) -> None:
    for table in suites.load_suite(name).tables:
        known = digests(table.target.name, table.target.version)
        seeds = table.seeds if table.copies else (0,)
        assert table.weights == {seed: known[seed] for seed in seeds}
