"""The hyperparameter search: what is dealt, how a clone is judged, and that it continues."""

import json
import tomllib
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from msbench.attacks.base import Attack
from msbench.benchmark.cli.main import cli
from msbench.benchmark.studies import tune as study
from msbench.benchmark.studies.tune import (
    LEARNER,
    OWN,
    as_settings,
    as_table,
    balanced_agreement,
    best_of,
    draw,
    space_of,
    tune,
)
from msbench.components import load_class, names
from msbench.errors import ContractViolation, UsageError
from msbench.targets.architectures import build_clone
from torch import Tensor, nn

Trial = dict[str, Any]


@pytest.mark.parametrize("attack", OWN)
def test_every_value_is_dealt_equally_often(attack: str) -> None:
    deals = [draw(space_of(attack), 3, trial) for trial in range(12)]
    for name, values in space_of(attack).items():
        counts = Counter(str(deal[name]) for deal in deals)
        assert counts == {str(value): 12 // len(values) for value in values}


def test_what_attacks_share_is_dealt_alike() -> None:
    for trial in range(12):
        deals = [draw(space_of(attack), 0, trial) for attack in OWN]
        for name in (*LEARNER, *study.FLOOR, *study.GENERATOR):
            assert len({str(deal[name]) for deal in deals if name in deal}) == 1


def test_seeds_deal_differently() -> None:
    first, second = ([draw(space_of("dfme"), seed, trial) for trial in range(12)] for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("attack", OWN)
def test_every_deal_is_accepted(attack: str) -> None:
    for trial in range(12):
        clone, params = as_settings(attack, draw(space_of(attack), 0, trial))
        load_class("attack", attack).from_params(params)
        build_clone(clone, num_classes=10, image_shape=(1, 8, 8), seed=0)


def test_every_attack_but_the_floor_is_searched() -> None:
    builtin = {name for name in names("attack") if load_class("attack", name).__module__.startswith("msbench.")}
    assert builtin - OWN.keys() == {"random_labels"}


@pytest.mark.parametrize("attack", OWN)
def test_what_learns_gets_the_draw_whatever_its_name(attack: str) -> None:
    drawn = draw(space_of(attack), 0, 5)
    optimizer, rate = drawn["optimizer, rate"]
    given = as_settings(attack, drawn)[1]
    known = {field.name for field in fields(load_class("attack", attack))}
    assert {given[name] for name in {"lr", "lr_student", "lr_initial"} & known} == {rate}
    assert {given[name] for name in {"batch", "initial_batch"} & known} == {drawn["batch"]}
    assert given["optimizer"] == optimizer
    assert {"schedule", "floor", "lr_generator"} & known == {"schedule", "floor", "lr_generator"} & given.keys()


@pytest.mark.parametrize("attack", OWN)
def test_no_more_than_two_hyperparameters_of_an_attacks_own_are_searched(attack: str) -> None:
    passes = "epochs" if "lr" in {field.name for field in fields(load_class("attack", attack))} else None
    assert sum(len(values) > 1 for name, values in OWN[attack].items() if name != passes) <= 2


FIRST = {
    "dualstudent:ema_every=10": {
        **{"batch": 256, "schedule": "multistep", "optimizer": "adam", "lr_student": 3e-4},
        **{"floor": 1e-7, "lr_generator": 1e-4, "width": 32, "latent": 256},
    },  # its moving average was not searched then
    "knockoff": {"batch": 256, "schedule": "multistep", "optimizer": "adam", "lr": 3e-4, "epochs": 10},
}


def test_the_first_searches_can_still_be_continued() -> None:
    """What was drawn for results that are kept."""
    for attack, params in FIRST.items():
        assert as_settings(attack, draw(space_of(attack), 0, 3)) == ("lenet5:norm=batch", params)


@pytest.mark.parametrize("given", ["batch=9", "optimizer=adam", "initial_batch=9", "lr_initial=0.5"])
def test_what_a_spec_gives_of_the_learner_is_not_searched(given: str) -> None:
    spec = f"dfms_hl:{given}"
    assert given.partition("=")[0] not in as_settings(spec, draw(space_of(spec), 0, 0))[1]


def test_what_a_spec_gives_is_not_searched() -> None:
    clone, params = as_settings("qedg:shift=2,lr_student=0.5", draw(space_of("qedg:shift=2,lr_student=0.5"), 0, 0))
    assert not {"shift", "lr_student", "schedule"} & params.keys()
    others, kept = as_settings("qedg", draw(space_of("qedg"), 0, 0))
    assert (clone, params) == (others, {name: kept[name] for name in kept if name not in ("shift", "lr_student")})


class Says(nn.Module):
    """Answers each image with the class that its pixel names."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(images.flatten().long(), 3).float()


def test_agreement_counts_classes_alike() -> None:
    images = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]).view(5, 1, 1, 1)
    answers = torch.eye(3)[[0, 0, 0, 1, 2]]  # class 0 right 3 of 3, class 1 right 1 of 1, class 2 right 0 of 1
    assert balanced_agreement(Says(), images, answers) == pytest.approx(2 / 3)


def test_search_continues_and_spends_no_more_than_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Counting(study.BlackBox):
        def query(self, images: Tensor) -> Tensor:
            asked.append(len(images))
            return super().query(images)

    monkeypatch.setattr(study, "BlackBox", Counting)
    output = tmp_path / "tuning.jsonl"

    def search(trials: int) -> list[dict[str, object]]:
        settings = {"budget": 400, "trials": trials, "seed": 0, "data_dir": tmp_path, "output": output}
        return list(tune("digits/lenet5", "random_noise", **settings))  # type: ignore[arg-type]

    first = search(1)
    assert sum(asked) == 400
    both = search(2)
    assert both[0] == first[0]
    assert sum(asked) == 800
    assert [json.loads(line) for line in output.read_text().splitlines()] == both


def victims(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool, int | None]]:
    """For each victim that is set up from now on: declared and actual labels, and the images of the attack's pool."""
    seen: list[tuple[bool, bool, int | None]] = []
    build = study.load_class

    def loading(kind: str, name: str) -> type[Attack]:
        class Spy(build(kind, name)):  # type: ignore[misc]
            def setup(self, victim: Any, context: Any) -> None:
                super().setup(victim, context)
                answers = victim.query(torch.rand(1, 1, 8, 8))
                seen.append((victim.labels_only, bool((answers == 1).any()), context.pool and len(context.pool)))

        return Spy

    monkeypatch.setattr(study, "load_class", loading)
    return seen


@pytest.mark.parametrize(
    ("attack", "answers", "labels", "pool"),
    [
        ("random_noise", "probabilities", False, None),
        ("random_noise", "labels", True, None),
        ("copycat:epochs=1", "probabilities", True, 60_000),
        ("knockoff:epochs=1,strategy=adaptive", "labels", True, 60_000),
        ("true_data:epochs=1", "probabilities", False, 1347),
    ],
)
def test_answers_and_pools_are_those_that_traits_and_options_say(
    attack: str, answers: Any, labels: bool, pool: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = victims(monkeypatch)
    settings = {"budget": 100, "trials": 1, "seed": 0, "data_dir": tmp_path, "output": tmp_path / "x"}
    [line] = tune("digits/lenet5", attack, answers=answers, **settings)  # type: ignore[arg-type]
    assert seen == [(labels, labels, pool)]
    assert line["key"] == ["digits/lenet5", attack, 100, 0, 0] + (["labels"] if labels else [])


def test_a_search_on_labels_does_not_take_what_was_found_on_probabilities(tmp_path: Path) -> None:
    settings = {"budget": 100, "trials": 1, "seed": 0, "data_dir": tmp_path, "output": tmp_path / "x"}
    first, second, again = (
        list(tune("digits/lenet5", "random_noise", answers=answers, **settings))  # type: ignore[arg-type]
        for answers in ("probabilities", "labels", "probabilities")
    )
    assert first == again
    assert first != second
    assert len((tmp_path / "x").read_text().splitlines()) == 2


def test_an_attack_that_diverges_scores_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(_: Any) -> None:
        raise ContractViolation("queried NaN pixels")

    monkeypatch.setattr(load_class("attack", "random_noise"), "step", diverge)
    settings = {"budget": 100, "trials": 1, "seed": 0, "data_dir": tmp_path, "output": tmp_path / "x"}
    [line] = tune("digits/lenet5", "random_noise", **settings)  # type: ignore[arg-type]
    assert (line["score"], line["error"]) == (0.0, "queried NaN pixels")


def test_the_earlier_of_equal_trials_is_the_best() -> None:
    lines: list[Trial] = [{"score": score, "trial": i} for i, score in enumerate((0.5, 0.75, 0.75, 0.25))]
    assert best_of(lines)["trial"] == 1


@pytest.mark.parametrize(
    ("attack", "answers", "place"),
    [
        ("jbda", "probabilities", ("jbda",)),
        ("jbda", "labels", ("jbda", "labels")),
        ("copycat", "labels", ("copycat",)),
        ("knockoff:strategy=adaptive", "labels", ("knockoff:strategy=adaptive", "labels")),
    ],
)
def test_what_is_printed_can_be_frozen(attack: str, answers: Any, place: tuple[str, ...]) -> None:
    params = {"batch": 64, "lr": 3e-4, "rounds": "none", "floor": 1e-7}
    found = tomllib.loads(as_table("digits/lenet5", attack, answers, {"clone": "lenet5", "params": params}))
    for name in ("digits", *place):
        assert found.keys() == {name}
        found = found[name]
    assert found == {"clone": "lenet5", "params": params}


def test_the_program_prints_the_best_settings_of_each_attack_and_nothing_else(tmp_path: Path) -> None:
    lines: list[Trial] = [
        {"key": ["digits/lenet5", attack, 100, 0, trial, "labels"], "clone": "lenet5", "params": {"batch": trial + 1}}
        for attack in ("copycat", "dfme")
        for trial in range(2)
    ]
    output = tmp_path / "tuning.jsonl"
    output.write_text("".join(json.dumps(line | {"score": 0.5, "seconds": 1.0}) + "\n" for line in lines))
    asked = f"--attack copycat --attack dfme --answers labels --budget 100 --trials 2 --output {output}".split()
    result = CliRunner().invoke(cli, ["study", "tune", *asked])
    assert result.exit_code == 0, result.output
    settings = {"clone": "lenet5", "params": {"batch": 1}}
    assert tomllib.loads(result.stdout) == {"digits": {"copycat": settings, "dfme": {"labels": settings}}}


def test_an_attack_without_a_space_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no search space for attack 'random_labels': known are dualstudent"):
        settings = {"budget": 10, "trials": 1, "seed": 0, "data_dir": tmp_path, "output": tmp_path / "x"}
        list(tune("digits/lenet5", "random_labels", **settings))  # type: ignore[arg-type]
