"""What a user asks for becomes a full description, whose hash is the run's identity."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from msbench.benchmark import spec
from msbench.benchmark.spec import RunSpec, resolve
from msbench.components import load_class, names, parse_spec
from msbench.errors import BadCheckpoint, BadParameter, MissingData, UnknownName, UsageError

BASE = RunSpec(defense="topk", attack="random_noise", budget=1000)


def identity(**changes: Any) -> str:
    return resolve(replace(BASE, **changes)).run_id


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen hyperparameters of the tests' own."""
    table = {"digits": {"random_noise": {"clone": "resnet18_8x", "params": {"batch": 7, "lr_student": 0.5}}}}
    monkeypatch.setattr(spec, "frozen", lambda: table)


DIFFERENT: list[dict[str, Any]] = [
    {"target": "digits/resnet18_8x"},
    {"target": "mnist/lenet5"},
    {"defense": "topk:k=4"},
    {"defense": "none"},
    {"defense": "topk+topk"},
    {"attack": "random_noise:batch=255"},
    {"attack": "random_noise:images=smooth"},
    {"attack": "dualstudent"},
    {"recovery": "argmax"},
    {"recovery": "averaging"},
    {"recovery": "averaging:repeats=5"},
    {"budget": 1001},
    {"seed": 1},
    {"defense_seed": 1},
    {"target_seed": 1},
    {"clone": "resnet18_8x"},
    {"precision": "bf16"},
]


def test_every_field_that_changes_numbers_changes_the_identity() -> None:
    ids = [identity(), *(identity(**changes) for changes in DIFFERENT)]
    assert len(set(ids)) == len(ids)
    unvaried = {field.name for field in fields(RunSpec)} - {name for changes in DIFFERENT for name in changes}
    assert unvaried == {"pool", "checkpoint"}  # which have tests of their own


def test_the_pool_is_part_of_a_pool_attacks_identity(photographs: Callable[[str], Path]) -> None:
    pools = ("patches", "mnist", f"imagefolder:{photographs('pets')}")
    ids = [identity(attack="knockoff", pool=pool) for pool in pools]
    assert len(set(ids)) == 3
    assert identity(attack="knockoff") == ids[0]


def test_the_ceiling_gets_the_targets_own_data_and_the_record_says_so(photographs: Callable[[str], Path]) -> None:
    for target in ("digits", "mnist", f"imagefolder:{photographs('pets')}"):
        plan = resolve(replace(BASE, attack="true_data", target=f"{target}/lenet5"))
        assert plan.pool is not None
        assert plan.info.pool == plan.pool.identity()
        assert plan.info.target.name == f"{plan.info.pool}/lenet5"


def test_the_floor_gets_the_pool_that_attacks_get(photographs: Callable[[str], Path]) -> None:
    for pool in (None, "mnist", f"imagefolder:{photographs('pets')}"):
        floor, attack = (resolve(replace(BASE, attack=name, pool=pool)) for name in ("random_labels", "knockoff"))
        assert floor.info.pool == attack.info.pool != "digits"
    assert resolve(BASE).info.pool is None


def test_the_protocol_is_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity()
    monkeypatch.setattr(spec, "PROTOCOL", "2099.9")
    assert identity() != before
    assert resolve(BASE).info.protocol == "2099.9"


def test_a_components_version_is_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity()
    monkeypatch.setattr(type(resolve(BASE).attack), "version", "next")
    assert identity() != before


@pytest.mark.parametrize(
    "same",
    [
        {"defense": "topk:k=3"},
        {"defense": " topk "},
        {"attack": "random_noise:batch=256,images=uniform"},
        {"attack": "random_noise:images=uniform,lr_student=1e-1"},
        {"clone": "lenet5"},
        {"precision": "fp32"},
    ],
)
def test_what_comes_to_the_same_has_the_same_identity(same: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "frozen", dict)
    assert identity(**same) == identity()


def test_a_checkpoint_is_known_by_its_bytes_and_not_by_its_path(tmp_path: Path) -> None:
    for name, content in (("a", b"weights"), ("b", b"weights"), ("c", b"other weights")):
        (tmp_path / name).write_bytes(content)
    first, copy, other = (identity(checkpoint=tmp_path / name) for name in "abc")
    assert first == copy
    assert len({first, other, identity()}) == 3
    assert str(tmp_path) not in resolve(replace(BASE, checkpoint=tmp_path / "a")).info.model_dump_json()


def test_a_folder_of_images_is_known_by_its_files_and_not_by_its_path(
    photographs: Callable[[str], Path], tmp_path: Path
) -> None:
    def asked(folder: Path) -> RunSpec:
        return replace(BASE, target=f"imagefolder:{folder}/lenet5", attack="knockoff", pool=f"imagefolder:{folder}")

    folder = photographs("somebody/pets")
    first = resolve(asked(folder))
    assert "somebody" not in first.info.model_dump_json()
    assert resolve(asked(folder.rename(tmp_path / "pets"))).run_id == first.run_id
    with pytest.raises(MissingData, match="imagefolder: no folder train"):
        resolve(asked(folder))


def test_defaults_of_all_components_are_written_out() -> None:
    info = resolve(replace(BASE, recovery="averaging")).info
    assert info.defense.params == {"k": 3}
    assert info.recovery.params == {"repeats": 4}
    assert info.attack.params.keys() == {
        *("images", "grid", "batch", "optimizer", "lr_student", "weight_decay", "schedule", "floor")
    }
    assert info.target.params == {"seed": 0}


def test_values_are_numbers_and_not_text() -> None:
    info = resolve(replace(BASE, defense="noise:scale=1,per_input=true", attack="random_noise:batch=12")).info
    assert info.attack.params["batch"] == 12
    assert info.defense.params == {
        **{"distribution": "gaussian", "scale": 1.0, "per_input": True},
        **{"on": "probabilities", "epsilon": None},
    }
    assert type(info.defense.params["scale"]) is float


@pytest.mark.usefixtures("frozen")
def test_what_is_written_beats_what_is_frozen_beats_the_default() -> None:
    default = resolve(replace(BASE, target="fashion_mnist/lenet5"))
    assert (default.info.attack.params["batch"], default.info.clone) == (256, "lenet5")
    found = resolve(BASE)
    assert (found.info.attack.params["batch"], found.info.clone) == (7, "resnet18_8x")
    assert found.info.attack.params["lr_student"] == 0.5
    assert found.info.attack.params["weight_decay"] == default.info.attack.params["weight_decay"]
    written = resolve(replace(BASE, attack="random_noise:batch=9", clone="lenet5"))
    assert (written.info.attack.params["batch"], written.info.clone) == (9, "lenet5")
    assert written.info.attack.params["lr_student"] == 0.5
    assert written.run_id == identity(attack="random_noise:batch=9,lr_student=0.5", clone="lenet5")


@pytest.mark.usefixtures("frozen")
def test_what_is_frozen_for_one_attack_leaves_the_others_alone() -> None:
    found = resolve(replace(BASE, attack="dualstudent"))
    assert (found.info.attack.params["batch"], found.info.clone) == (256, "lenet5")


LABELS = {
    "digits": {
        "random_noise": {
            "clone": "resnet18_8x",
            "params": {"batch": 7, "lr_student": 0.5},
            "labels": {"clone": "lenet5:norm=batch", "params": {"batch": 8}},
        },
        "knockoff": {"params": {"epochs": 1}, "labels": {"params": {"epochs": 2}}},
        "knockoff:strategy=adaptive": {"params": {"epochs": 3}},
        "copycat": {"params": {"epochs": 4}},
    }
}


@pytest.fixture
def frozen_for_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen hyperparameters with settings for labels."""
    monkeypatch.setattr(spec, "frozen", lambda: LABELS)


def attacker(**changes: Any) -> tuple[dict[str, Any], str]:
    info = resolve(replace(BASE, **changes)).info
    return info.attack.params, info.clone


@pytest.mark.usefixtures("frozen_for_labels")
@pytest.mark.parametrize(
    ("defense", "recovery", "batch"),
    [
        ("none", "none", 7),
        ("topk", "none", 7),
        ("label_only", "none", 8),
        ("topk:k=1", "none", 8),
        ("noise+label_only", "none", 8),
        ("label_only+noise", "none", 7),
        ("none", "argmax", 8),
        ("label_only", "argmax", 8),
        ("label_only", "averaging", 8),
        ("label_only", "smoothing", 7),
    ],
)
def test_what_is_frozen_follows_what_the_attack_sees(defense: str, recovery: str, batch: int) -> None:
    assert attacker(defense=defense, recovery=recovery)[0]["batch"] == batch


@pytest.mark.usefixtures("frozen_for_labels")
def test_labels_are_labels_however_they_come_about() -> None:
    assert attacker(defense="topk", recovery="argmax") == attacker(defense="label_only")
    assert attacker(defense="label_only", recovery="refusals") == attacker(defense="label_only")
    assert attacker(defense="label_only") != attacker(defense="topk")


@pytest.mark.usefixtures("frozen_for_labels")
def test_settings_for_labels_take_the_place_of_the_others_as_a_whole() -> None:
    params, clone = attacker(defense="label_only")
    assert (params["batch"], params["lr_student"], clone) == (8, 0.1, "lenet5:norm=batch")
    params, clone = attacker(defense="label_only", attack="knockoff")
    assert (params["epochs"], clone) == (2, "lenet5")


@pytest.mark.usefixtures("frozen")
def test_where_nothing_is_frozen_for_labels_the_settings_for_probabilities_hold() -> None:
    assert attacker(defense="label_only") == attacker()


@pytest.mark.usefixtures("frozen_for_labels")
def test_what_is_written_beats_what_is_frozen_for_labels() -> None:
    params, clone = attacker(defense="label_only", attack="random_noise:batch=9,schedule=constant", clone="lenet5")
    assert (params["batch"], params["schedule"], clone) == (9, "constant", "lenet5")


@pytest.mark.usefixtures("frozen_for_labels")
def test_an_attack_that_uses_labels_anyway_has_one_table() -> None:
    assert attacker(attack="copycat", defense="label_only") == attacker(attack="copycat")
    assert attacker(attack="copycat")[0]["epochs"] == 4


@pytest.mark.usefixtures("frozen_for_labels")
def test_a_variant_has_its_own_settings() -> None:
    for attack, epochs in (
        ("knockoff", 1),
        ("knockoff:strategy=random", 1),
        ("knockoff:strategy=adaptive", 3),
        ("knockoff:batch=9, strategy=adaptive", 3),
        ("knockoff:epochs=5,strategy=adaptive", 5),
    ):
        assert attacker(attack=attack)[0]["epochs"] == epochs
    assert attacker(attack="knockoff:strategy=adaptive", defense="label_only")[0]["epochs"] == 3


def test_asking_what_the_attack_sees_leaves_the_recovery_alone() -> None:
    assert not hasattr(resolve(replace(BASE, recovery="argmax")).recovery, "victim")


def test_a_data_sets_clone_is_that_of_attacks_without_another(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"clone": "lenet5:hidden=8", "random_noise": {"params": {"batch": 7}}, "dfme": {"clone": "lenet5:hidden=9"}}
    monkeypatch.setattr(spec, "frozen", lambda: {"digits": table})
    infos = {attack: resolve(replace(BASE, attack=attack)).info for attack in ("random_noise", "dfme", "maze")}
    assert {attack: info.clone for attack, info in infos.items()} == {
        "random_noise": "lenet5:hidden=8",
        "dfme": "lenet5:hidden=9",
        "maze": "lenet5:hidden=8",
    }
    assert infos["random_noise"].attack.params["batch"] == 7


@pytest.mark.parametrize(
    ("dataset", "attack", "params"),
    [
        ("svhn", "dfme", {"lr_generator": 5e-5, "lr_student": 0.1}),
        ("cifar10", "dfme", {"lr_generator": 1e-4, "lr_student": 0.1}),
        ("cifar10", "disguide", {"diversity": 0.2, "lr_student": 0.03}),
        ("cifar100", "disguide", {"diversity": 0.04, "lr_student": 0.03}),
        ("cifar10", "dfms_hl", {"diversity": 500.0}),
        ("cifar100", "dfms_hl", {"diversity": 100.0}),
        ("cifar10", "ideal", {"generator_steps": 5}),
        ("cifar10", "qedg", {"images": 512, "latent": 1024, "overconfidence": 1.0, "diversity": 0.01, "mistakes": 2.0}),
    ],
)
def test_the_papers_constants_are_those_of_their_data_sets(dataset: str, attack: str, params: dict[str, Any]) -> None:
    resolved = resolve(RunSpec(target=f"{dataset}/resnet34_8x", attack=attack, budget=1000)).info
    assert resolved.clone == "resnet18_8x"
    assert {name: resolved.attack.params[name] for name in params} == params


def test_a_frozen_parameter_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "frozen", lambda: {"digits": {"random_noise": {"params": {"bach": 1}}}})
    with pytest.raises(BadParameter, match="'bach'"):
        identity()


@pytest.mark.parametrize("recovery", ["none", "argmax"])
@pytest.mark.parametrize("attack", names("attack"))
def test_what_the_package_freezes_can_be_used(attack: str, recovery: str) -> None:
    for dataset, frozen in spec.frozen().items():
        for variant in (attack, *(key for key in frozen if key.startswith(f"{attack}:"))):
            resolve(replace(BASE, attack=variant, recovery=recovery, target=f"{dataset}/lenet5", pool=None))


def test_the_frozen_table_names_data_sets_and_attacks_that_exist() -> None:
    for dataset, attacks in spec.frozen().items():
        assert dataset in names("dataset")
        for attack, entry in attacks.items():
            if attack == "clone":
                continue
            cls: Any = load_class("attack", parse_spec(attack)[0])
            more = {"labels"} if cls.traits.access != "labels" else set()
            assert entry.keys() <= {"clone", "params"} | more
            assert entry.get("labels", {}).keys() <= {"clone", "params"}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"budget": 0}, UsageError, "budget 0 is not usable"),
        ({"budget": -5}, UsageError, "budget -5 is not usable"),
        ({"seed": -1}, UsageError, "seed -1 is not usable"),
        ({"defense_seed": -2}, UsageError, "seed -2 is not usable"),
        ({"target_seed": -3}, UsageError, "seed -3 is not usable"),
        ({"attack": "dualstudnet"}, UnknownName, "dualstudent"),
        ({"defense": "topk+labelonly"}, UnknownName, "label_only"),
        ({"recovery": "argmin"}, UnknownName, "argmax"),
        ({"target": "digit/lenet5"}, UnknownName, "digits"),
        ({"target": "digits"}, UsageError, "DATASET/ARCHITECTURE"),
        ({"target": "digits/lenet6"}, UnknownName, "lenet5"),
        ({"clone": "lenet6"}, UnknownName, "lenet5"),
        ({"defense": "topk:q=3"}, BadParameter, "unknown parameter 'q' \\(valid: k\\)"),
        ({"defense": "topk:k=0"}, BadParameter, "k=0 is out of range"),
        ({"defense": "topk:k=many"}, BadParameter, "k='many' is not usable"),
        ({"attack": "random_noise:lr_student=nan"}, UsageError, "lr_student"),
        ({"pool": "patches"}, UsageError, "takes no --pool"),
        ({"attack": "dualstudent", "pool": "mnist"}, UsageError, "dualstudent is data-free: it takes no --pool"),
        (
            {"defense": "topk+grad_redirection", "recovery": "bayes"},
            UsageError,
            r"no attacker can rebuild topk\+grad_redirection, which is made from what only its owner has \(data\)",
        ),
        ({"attack": "true_data", "pool": "mnist"}, UsageError, "true_data is control: it takes no --pool"),
        ({"attack": "knockoff", "pool": "pathces"}, UnknownName, "patches"),
        ({"attack": "knockoff", "target": "patches/lenet5"}, UsageError, "declares no pool: name one with --pool"),
        ({"budget": 3, "recovery": "averaging"}, UsageError, "one image costs 4 queries"),
        ({"checkpoint": Path("nowhere.safetensors")}, BadCheckpoint, "no checkpoint"),
    ],
)
def test_what_cannot_be_run_is_refused(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        identity(**changes)


def test_a_budget_of_one_image_is_enough() -> None:
    assert resolve(replace(BASE, budget=4, recovery="averaging")).info.budget == 4
    assert resolve(replace(BASE, budget=1)).info.budget == 1
