"""The target zoo: trained once, cached, checked, and never unpickled."""

import hashlib
import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from msbench.errors import BadCheckpoint, Interrupted, MissingData, UnknownName, UsageError
from msbench.targets import zoo
from msbench.targets.architectures import build_network
from msbench.targets.datasets.base import TensorImages
from msbench.targets.datasets.loading import load_dataset
from msbench.targets.training import RECIPES, accuracy, channel_statistics
from msbench.targets.zoo import cached_targets, describe_target, load_target, parse_target, zoo_dir
from safetensors.torch import load_file, save_file
from torch import Tensor

NAME = "digits/lenet5:width=4,hidden=32"


class Listener:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.epochs: list[tuple[int, int]] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def training(self, epoch: int, epochs: int, loss: float) -> None:
        self.epochs.append((epoch, epochs))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, and a recipe that takes a fraction of a second."""
    monkeypatch.setenv("MSBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(RECIPES, "digits", replace(RECIPES["digits"], epochs=2, batch=64, lr=2e-2))
    yield tmp_path / "home"


def digits(split: str) -> TensorImages:
    loaded = load_dataset("digits").load(split, data_dir=Path(), download=False, device="cpu")  # type: ignore[arg-type]
    assert isinstance(loaded, TensorImages)
    return loaded


def only_weights() -> Path:
    [path] = zoo_dir().glob("*/*.safetensors")
    return path


# ----------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "dataset", "architecture", "brings_weights"),
    [
        ("digits/lenet5", "digits", "lenet5", False),
        (NAME, "digits", "lenet5:width=4,hidden=32", False),
        ("cifar10/resnet34_8x", "cifar10", "resnet34_8x", False),
        ("imagefolder:/a/b/resnet18", "imagefolder:/a/b", "resnet18", False),
        ("imagefolder:/a.b/c/resnet18:drop_rate=0.5", "imagefolder:/a.b/c", "resnet18:drop_rate=0.5", False),
        ("imagenet/resnet50.a1_in1k", "imagenet", "resnet50.a1_in1k", True),
        ("imagenet/hf-hub:timm/resnet18.a1_in1k", "imagenet", "hf-hub:timm/resnet18.a1_in1k", True),
        ("imagefolder:/a/b/hf-hub:timm/resnet18", "imagefolder:/a/b", "hf-hub:timm/resnet18", True),
    ],
)
def test_names_are_taken_apart(name: str, dataset: str, architecture: str, brings_weights: bool) -> None:
    parsed = parse_target(name)
    assert (parsed.dataset_spec, parsed.architecture) == (dataset, architecture)
    assert parsed.brings_weights == brings_weights
    assert parsed.dataset.label() == dataset.partition(":")[0]


def test_the_path_of_a_folder_reaches_its_data_set() -> None:
    assert parse_target("imagefolder:/a/b/resnet18").dataset.params()["path"] == "/a/b"


@pytest.mark.parametrize("name", ["digits", "/lenet5", "digits/", "/", ""])
def test_what_is_no_target_is_told_the_form(name: str) -> None:
    with pytest.raises(UsageError, match="is not DATASET/ARCHITECTURE: write digits/lenet5, say"):
        parse_target(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [("nosuch/lenet5", "unknown dataset 'nosuch'"), ("digits/nosuch", "unknown architecture 'nosuch'")],
)
def test_unknown_parts_are_named(name: str, words: str) -> None:
    with pytest.raises(UnknownName, match=f"{words}: did you mean"):
        parse_target(name)


# -------------------------------------------------------------------------------------------------- the cache


def test_a_target_is_trained_once_and_then_cached() -> None:
    first, second = Listener(), Listener()
    trained = load_target(NAME, listener=first)
    cached = load_target(NAME, listener=second)
    assert first.phases == [f"training target {NAME} (once; then cached)"]
    assert first.epochs == [(1, 2), (2, 2)]
    assert (second.phases, second.epochs) == ([], [])
    assert cached.card == trained.card
    assert cached.path == trained.path == only_weights()
    images, _ = digits("test").take(torch.arange(20))
    assert torch.equal(trained.target(images), cached.target(images))


def test_what_is_loaded_is_frozen() -> None:
    for loaded in (load_target(NAME), load_target(NAME)):
        assert not loaded.target.training
        assert not any(parameter.requires_grad for parameter in loaded.target.parameters())


def test_the_card_says_what_was_measured() -> None:
    loaded = load_target(NAME)
    card = json.loads(only_weights().with_suffix(".json").read_text())
    assert card == asdict(loaded.card)
    assert (card["dataset"], card["architecture"]) == ("digits", "lenet5:width=4,hidden=32")
    assert card["accuracy"] == accuracy(loaded.target, digits("test"))
    assert card["accuracy"] > 0.3  # two epochs
    assert card["recipe"] == asdict(RECIPES["digits"])
    assert card["seed"] == 0
    assert card["digest"] == hashlib.sha256(only_weights().read_bytes()).hexdigest()
    assert card["trained_seconds"] > 0
    assert list(cached_targets()) == [loaded.card]


def test_training_anew_gives_the_same_weights(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_target(NAME).card.digest
    monkeypatch.setenv("MSBENCH_HOME", str(home / "elsewhere"))
    assert load_target(NAME).card.digest == first


def test_a_damaged_weight_file_is_trained_anew_rather_than_trusted() -> None:
    before = load_target(NAME)
    content = bytearray(only_weights().read_bytes())
    content[-1] ^= 1
    only_weights().write_bytes(content)
    listener = Listener()
    again = load_target(NAME, listener=listener)
    assert listener.epochs == [(1, 2), (2, 2)]
    assert again.card.digest == before.card.digest == hashlib.sha256(only_weights().read_bytes()).hexdigest()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"digest": 1}'])
def test_a_damaged_card_is_passed_over(text: str) -> None:
    load_target(NAME)
    only_weights().with_suffix(".json").write_text(text)
    assert list(cached_targets()) == []
    listener = Listener()
    load_target(NAME, listener=listener)
    assert listener.epochs
    assert len(list(cached_targets())) == 1


@pytest.mark.parametrize("change", [{"epochs": 1}, {"lr": 1e-3}, {"version": "another"}])
def test_a_new_recipe_never_finds_old_weights(monkeypatch: pytest.MonkeyPatch, change: dict[str, object]) -> None:
    old = load_target(NAME)
    monkeypatch.setitem(RECIPES, "digits", replace(RECIPES["digits"], **change))  # type: ignore[arg-type]
    listener = Listener()
    new = load_target(NAME, listener=listener)
    assert listener.epochs
    assert new.path != old.path
    assert len(list(cached_targets())) == 2


def test_another_architecture_has_another_file() -> None:
    paths = {load_target(f"digits/lenet5:width=4,hidden={units}").path for units in (16, 32)}
    assert len(paths) == 2


def test_a_seed_makes_another_copy_with_a_file_of_its_own(home: Path) -> None:
    first, second = load_target(NAME), load_target(NAME, seed=1)
    assert (first.card.seed, second.card.seed) == (0, 1)
    assert first.card.digest != second.card.digest
    assert load_target(NAME, seed=1).card == second.card
    assert load_target(NAME).card == first.card
    assert len(list(cached_targets())) == 2
    assert describe_target(NAME, None, 1)["params"] == {"seed": 1}


def test_weights_that_are_given_have_no_copies(home: Path) -> None:
    path = load_target(NAME).path
    for name, checkpoint in ((NAME, path), ("imagenet/resnet50.a1_in1k", None)):
        with pytest.raises(UsageError, match=r"target seed 1 is not usable: the weights of .* are given, not trained"):
            describe_target(name, checkpoint, 1)


class Stopper(Listener):
    """Asks for a stop once training was announced, or has gone on for so many epochs."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after
        self.stop = threading.Event()

    def phase(self, text: str) -> None:
        if self.after == 0:
            self.stop.set()

    def training(self, epoch: int, epochs: int, loss: float) -> None:
        super().training(epoch, epochs, loss)
        if epoch == self.after:
            self.stop.set()


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_training_that_is_stopped_ends_before_the_next_batch_and_leaves_nothing(home: Path, epochs: int) -> None:
    stopper = Stopper(after=epochs)
    with pytest.raises(Interrupted, match="nothing of it is kept"):
        load_target(NAME, listener=stopper, stop=stopper.stop)
    assert len(stopper.epochs) == epochs
    assert {path.suffix for path in home.rglob("*") if path.is_file()} == {".lock"}
    whole = Listener()
    load_target(NAME, listener=whole, stop=threading.Event())
    assert len(whole.epochs) == 2
    assert load_target(NAME, stop=stopper.stop).path == only_weights()  # what is cached takes no time


FOLDER = "imagefolder:{},size=8/lenet5:width=4,hidden=8"


def test_a_folder_of_images_is_recognized_wherever_it_lies(
    photographs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "imagefolder", RECIPES["digits"])
    old = photographs("somebody/pets")
    first, described = load_target(FOLDER.format(old)), describe_target(FOLDER.format(old), None)
    assert "somebody" not in str(described)
    assert described["name"].startswith("imagefolder:path=pets@")
    assert described["name"].endswith(",size=8/lenet5:width=4,hidden=8")

    new = old.rename(tmp_path / "pets")
    listener = Listener()
    assert load_target(FOLDER.format(new), listener=listener).card == first.card
    assert listener.epochs == []
    assert describe_target(FOLDER.format(new), None) == described

    (new / "train" / "cat" / "0.png").unlink()
    load_target(FOLDER.format(new), listener=listener)
    assert listener.epochs  # other images make another target
    assert describe_target(FOLDER.format(new), None) != described


def test_the_description_of_a_trained_target() -> None:
    recipe = RECIPES["digits"]
    assert describe_target(NAME, None) == {"name": NAME, "version": recipe.version, "params": {"seed": 0}}
    assert describe_target("imagenet/resnet50.a1_in1k", None)["version"] == "pretrained"


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The weights of a whole target, normalization included."""
    load_target(NAME)
    only_weights().rename(tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


def bare(path: Path, padding: int = 0) -> dict[str, Tensor]:
    """Writes the weights of a network alone; ``padding`` makes the file's header longer."""
    network = build_network("lenet5:width=4,hidden=32", num_classes=10, image_shape=(1, 8, 8), seed=7)
    state = network.state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata={"note": "x" * padding})
    return state


def test_a_target_of_ones_own_is_loaded_as_it_is(own: Path) -> None:
    loaded = load_target(NAME, checkpoint=own)
    tensors = load_file(own)
    assert all(torch.equal(tensors[key], tensor) for key, tensor in loaded.target.state_dict().items())
    assert loaded.card.digest == hashlib.sha256(own.read_bytes()).hexdigest()
    assert loaded.card.accuracy == accuracy(loaded.target, digits("test"))
    assert loaded.path == own
    assert not loaded.target.training
    assert not any(parameter.requires_grad for parameter in loaded.target.parameters())
    assert not list(zoo_dir().glob("*/*.safetensors"))  # nothing was trained


def test_a_bare_network_gets_the_normalization_of_its_training_images(tmp_path: Path) -> None:
    state = bare(tmp_path / "bare.safetensors")
    target = load_target(NAME, checkpoint=tmp_path / "bare.safetensors").target
    mean, std = channel_statistics(digits("train"))
    assert target.mean.flatten().tolist() == pytest.approx(mean)
    assert target.std.flatten().tolist() == pytest.approx(std)
    assert all(torch.equal(target.network.state_dict()[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("first_bytes", [b"\x80", b"PK"])
def test_weights_that_begin_like_a_pickle_are_still_weights(tmp_path: Path, first_bytes: bytes) -> None:
    """The first bytes of safetensors are a length: every 32nd file begins with a pickle's 0x80."""
    path = tmp_path / "bare.safetensors"
    wanted = int.from_bytes(first_bytes.ljust(2, b"\x04"), "little")
    bare(path)
    missing = wanted - int.from_bytes(path.read_bytes()[:8], "little")
    bare(path, padding=missing)
    assert path.read_bytes().startswith(first_bytes)
    assert load_target(NAME, checkpoint=path).path == path


def test_the_description_of_a_checkpoint_is_its_digest(own: Path) -> None:
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    assert describe_target(NAME, own) == {"name": NAME, "version": "checkpoint", "params": {"sha256": digest}}


def refused(path: Path, name: str = NAME) -> str:
    """The one line that a checkpoint is refused with."""
    with pytest.raises(BadCheckpoint) as caught:
        load_target(name, checkpoint=path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["digits/lenet5:width=8,hidden=32", "digits/lenet5:width=4,hidden=32,norm=batch"])
def test_weights_of_another_network_are_refused_in_one_line(own: Path, tmp_path: Path, name: str) -> None:
    bare(tmp_path / "bare.safetensors")
    for path in (own, tmp_path / "bare.safetensors"):
        text = refused(path, name)
        assert text.startswith(f"{path} does not fit {name}: ")
        assert "network." in text


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("how", ["zip", "legacy", *map(str, range(pickle.HIGHEST_PROTOCOL + 1))])
def test_pickles_are_refused_and_not_opened(tmp_path: Path, how: str) -> None:
    witness, path = tmp_path / "witness", tmp_path / "weights.pt"
    payload = {"weight": torch.zeros(2), "trap": Malicious(witness)}
    if how.isdecimal():
        path.write_bytes(pickle.dumps(payload, protocol=int(how)))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=how == "zip")
    text = refused(path)
    assert "safetensors" in text
    if how not in "01":  # the text protocols look like any other file
        assert "is a pickle" in text
        assert "safetensors.torch.save_file" in text
        with pytest.raises(BadCheckpoint, match="is a pickle"):
            describe_target(NAME, path)
    assert not witness.exists()
    pickle.loads(pickle.dumps(Malicious(witness)))  # noqa: S301  the trap does work
    assert witness.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x00" * 100, b"\xff" * 100, b"\x05\0\0\0\0\0\0\0{}   ", b"PK"])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(content)
    assert str(path) in refused(path)


def test_a_truncated_file_is_refused(own: Path) -> None:
    own.write_bytes(own.read_bytes()[:-10])
    assert "is not a safetensors file" in refused(own)


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.safetensors", tmp_path):
        assert refused(path) == f"no checkpoint {str(path)!r}: give a .safetensors file"
        with pytest.raises(BadCheckpoint):
            describe_target(NAME, path)


def test_data_that_is_not_there_is_no_crash(tmp_path: Path) -> None:
    with pytest.raises(MissingData):
        load_target("cifar10/resnet18_8x", data_dir=tmp_path, download=False)
    assert list(cached_targets()) == []


# ------------------------------------------------------------------------------------------------ side by side


def test_two_that_need_the_same_target_train_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, begun = [], threading.Event()

    def train(*arguments: object, **options: object) -> None:
        trained.append(threading.get_ident())
        begun.set()
        time.sleep(0.5)  # long enough for the other to come and wait

    monkeypatch.setattr(zoo, "train", train)
    found: list[str] = []
    first = threading.Thread(target=lambda: found.append(load_target(NAME).card.digest))
    first.start()
    assert begun.wait(60)
    found.append(load_target(NAME).card.digest)
    first.join()
    assert len(trained) == 1
    assert len(set(found)) == 1 and len(found) == 2


def test_pretrained_weights_of_other_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network("lenet5", num_classes=10, image_shape=(1, 8, 8), seed=0)
    network.pretrained_cfg = {"num_classes": 1000, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    monkeypatch.setattr(zoo, "build_network", lambda *_, **__: network)
    with pytest.raises(UsageError, match=r"resnet18\.a1_in1k know 1000 classes, digits has 10: name the architecture"):
        load_target("digits/resnet18.a1_in1k")


def test_who_waits_for_a_target_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, stop = threading.Event(), threading.Event(), threading.Event()

    def train(*arguments: object, **options: object) -> None:
        begun.set()
        go_on.wait(60)

    monkeypatch.setattr(zoo, "train", train)
    first = threading.Thread(target=lambda: load_target(NAME))
    first.start()
    assert begun.wait(60)
    stop.set()
    with pytest.raises(Interrupted, match="another process"):
        load_target(NAME, stop=stop)
    go_on.set()
    first.join()
