"""What recoveries undo: the distance to clean answers before and after, exact where it can be."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from msbench.attacks.recovery.base import Recovery, RecoveryContext
from msbench.attacks.recovery.bayes import AnswerTable, dirichlet, prior
from msbench.components import load
from msbench.defenses.base import DefenseContext
from msbench.defenses.rebuilt import Rebuilt, withheld
from msbench.errors import BudgetExceeded
from msbench.targets.blackbox import BlackBox
from torch import Tensor, nn
from torch.nn import functional as F

CPU = torch.device("cpu")


class Mixing:
    """Releases A p, p in rows: a fixed linear map, no entry point of ours."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs @ self.matrix.T

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def built(defense: Any, classes: int, seed: int = 0) -> Any:
    """The defense that a spec describes, or a defense as it is."""
    if not isinstance(defense, str):
        return defense
    return Rebuilt(
        defense,
        DefenseContext(
            num_classes=classes,
            image_shape=(1, 1, classes),
            device=CPU,
            seed=seed,
            new_surrogate=lambda seed: Surrogate(),
            target=withheld,
            data=withheld,
            auxiliary=withheld,
        ),
    )


class Surrogate(nn.Module):
    """Knows nothing."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * 0


def linear(seed: int, classes: int) -> nn.Module:
    """A small clone that can learn."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(classes, classes))
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(classes, classes, generator=torch.Generator().manual_seed(seed)))
        network[1].bias.zero_()
    return network


@dataclass
class Scene:
    """A victim whose images are its logits: image x (1, 1, K) in [0, 1] is answered softmax(sharpness·x)."""

    recovery: Recovery
    victim: BlackBox
    deployed: Any
    sharpness: float
    asked: list[Tensor] = field(default_factory=list)

    def clean(self, images: Tensor) -> Tensor:
        return (self.sharpness * images.flatten(1)).softmax(dim=1)

    def distances(self, images: Tensor) -> tuple[float, float]:
        """Mean L1 distance to clean answers: of the released ones, and of the restored ones."""
        clean = self.clean(images)
        released = self.deployed.release(clean.clone(), images)
        restored = self.recovery.query(images)
        return tuple(float((answers - clean).abs().sum(dim=1).mean()) for answers in (released, restored))  # type: ignore[return-value]


def scene(
    spec: str,
    defense: Any = "none",
    *,
    classes: int = 6,
    sharpness: float = 12.0,
    budget: int = 100_000,
    clone: Callable[[], nn.Module] | None = None,
    labels_only: bool = False,
) -> Scene:
    deployed = built(defense, classes)

    def answer(images: Tensor) -> Tensor:
        made.asked.append(images)
        return cast(Tensor, deployed.release(made.clean(images), images))

    victim = BlackBox(answer, budget=budget, num_classes=classes, image_shape=(1, 1, classes), labels_only=labels_only)
    recovery = cast(Recovery, load("recovery", spec)).wrap(victim)
    made = Scene(recovery, victim, deployed, sharpness)
    recovery.prepare(
        RecoveryContext(
            device=CPU,
            seed=3,
            build_clone=lambda seed: linear(seed, classes),
            rebuild_defense=lambda seed: built(defense, classes, seed),
            clone=clone or Surrogate,
            clean=made.clean if "clean answers" in recovery.traits.knows else None,
        )
    )
    return made


def images(count: int, classes: int = 6, seed: int = 0) -> Tensor:
    """Logits between 0 and 1: answers from flat to sure, every class on top now and then."""
    return torch.rand(count, 1, 1, classes, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------- smoothing


def test_smoothing_asks_about_every_copy_and_averages() -> None:
    on = scene("smoothing:copies=5", budget=24)
    restored = on.recovery.query(images(4))
    [asked] = on.asked
    assert asked.shape == (20, 1, 1, 6)
    torch.testing.assert_close(restored, on.clean(asked).view(5, 4, 6).mean(dim=0))
    assert (on.victim.spent, on.recovery.spent, on.recovery.remaining) == (20, 4, 0)
    with pytest.raises(BudgetExceeded):
        on.recovery.query(images(1))
    assert on.victim.spent == 20


def test_smoothing_copies_are_noisy_by_as_much_as_asked_for() -> None:
    on = scene("smoothing:copies=50,noise=0.02")
    middle = torch.full((20, 1, 1, 6), 0.5)
    on.recovery.query(middle)
    assert float(on.asked[0].std()) == pytest.approx(0.02, rel=0.05)
    assert float(on.asked[0].mean()) == pytest.approx(0.5, abs=0.002)


def test_smoothing_shifts_each_copy_on_its_own_and_repeats_the_border() -> None:
    on = scene("smoothing:copies=200,shift=1,noise=0")
    one = torch.arange(6.0).view(1, 1, 1, 6) / 10
    on.recovery.query(one)
    seen = {tuple((copy * 10).round().int().flatten().tolist()) for copy in on.asked[0]}
    assert seen == {(0, 1, 2, 3, 4, 5), (0, 0, 1, 2, 3, 4), (1, 2, 3, 4, 5, 5)}


def test_smoothing_without_variation_is_no_recovery() -> None:
    on = scene("smoothing:noise=0")
    torch.testing.assert_close(on.recovery.query(images(9)), on.clean(images(9)))


def test_smoothing_averages_noise_that_is_fixed_for_each_image() -> None:
    spec = "noise:per_input=true,scale=0.05"
    before, after = scene("smoothing:copies=16,noise=0.01", spec, sharpness=2).distances(images(500))
    assert after < before / 2.5
    before, after = scene("averaging:repeats=16", spec, sharpness=2).distances(images(500))
    assert after == pytest.approx(before)


# ----------------------------------------------------------------------------------------- temperature


@pytest.mark.parametrize("temperature", [2, 4, 8])
def test_temperature_fit_hides_no_temperature(temperature: float) -> None:
    """Below the criterion, what is restored does not depend on the temperature."""
    warm = scene("temperature:margin=9", f"temperature:temperature={temperature}").recovery.query(images(50))
    plain = scene("temperature:margin=9").recovery.query(images(50))
    torch.testing.assert_close(warm, plain, atol=2e-6, rtol=1e-4)


def test_temperature_fit_is_exact_where_the_criterion_is() -> None:
    top = images(400).flatten(1).topk(2, dim=1).values
    margin = 12 * float((top[:, 0] - top[:, 1]).mean())
    before, after = scene(f"temperature:margin={margin}", "temperature:temperature=4").distances(images(400))
    assert before > 0.5
    assert after < 1e-4


def test_temperature_fit_leaves_answers_of_larger_margins_alone() -> None:
    on = scene("temperature:margin=1", sharpness=12)
    torch.testing.assert_close(on.recovery.query(images(50)), on.clean(images(50)))


def test_temperature_fit_takes_the_mean_over_all_answers_so_far() -> None:
    on = scene("temperature:margin=9")
    on.recovery.query(images(30, seed=1))
    restored = on.recovery.query(images(20, seed=2))
    both = torch.cat([images(30, seed=1), images(20, seed=2)]).flatten(1).topk(2, dim=1).values
    factor = 9 / (12 * float((both[:, 0] - both[:, 1]).mean()))
    torch.testing.assert_close(restored, (factor * 12 * images(20, seed=2).flatten(1)).softmax(dim=1))


def test_temperature_fit_keeps_labels_and_zeros() -> None:
    on = scene("temperature", "label_only")
    assert set(on.recovery.query(images(30)).flatten().tolist()) == {0.0, 1.0}
    on = scene("temperature", "topk:k=3")
    assert ((on.recovery.query(images(30)) > 0).sum(dim=1) == 3).all()


def test_temperature_fit_has_a_limit_for_answers_of_no_margin() -> None:
    restored = scene("temperature", sharpness=0).recovery.query(images(5))
    torch.testing.assert_close(restored, torch.full((5, 6), 1 / 6))


# ---------------------------------------------------------------------------------------------- linear


def leaky(classes: int = 6) -> Mixing:
    """Each class keeps more than half and leaks the rest to the others, unevenly."""
    drawn = torch.rand(classes, classes, generator=torch.Generator().manual_seed(8))
    return Mixing(0.55 * torch.eye(classes) + 0.45 * drawn / drawn.sum(dim=0))


def test_linear_inversion_is_exact_once_every_class_was_answered_surely() -> None:
    on = scene("linear:answers=1", leaky(), sharpness=40)
    on.recovery.query(torch.eye(6).view(6, 1, 1, 6))
    before, after = on.distances(images(300))
    assert before > 0.5
    assert after < 1e-4


def test_linear_inversion_undoes_mixing_with_a_constant_before_any_sure_answer() -> None:
    constant = torch.tensor([0.3, 0.1, 0.1, 0.05, 0.05, 0.0])
    mixing = Mixing(0.4 * torch.eye(6) + constant[:, None])
    on = scene("linear:answers=1000", mixing)
    before, after = on.distances(images(300))
    assert before > 0.5
    assert after < 0.01


def test_linear_inversion_changes_little_without_a_defense() -> None:
    _, after = scene("linear", sharpness=30).distances(images(3000))
    assert after < 0.01


def test_linear_inversion_takes_the_surest_answer_that_came_top_of_each_class() -> None:
    on = scene("linear:answers=1")
    on.recovery.query(images(40, seed=1))
    on.recovery.query(images(40, seed=2))
    answers = on.clean(torch.cat([images(40, seed=1), images(40, seed=2)]))
    for k in range(6):
        topped = answers[answers.argmax(dim=1) == k]
        expected = topped[topped[:, k].argmax()].double()
        torch.testing.assert_close(cast(Any, on.recovery).surest[k], expected)


def test_linear_inversion_survives_answers_that_say_nothing() -> None:
    restored = scene("linear:answers=1", sharpness=0).recovery.query(images(5))
    torch.testing.assert_close(restored, torch.full((5, 6), 1 / 6))


# -------------------------------------------------------------------------------------------- monotone


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_monotone_inversion_of_a_monotone_function_is_exact(classes: int) -> None:
    on = scene("monotone", "temperature:temperature=3", classes=classes)
    before, after = on.distances(images(200, classes))
    assert before > 0.2
    assert after < 2e-3


@pytest.mark.parametrize("beta", [0.05, 0.2, 0.6])
@pytest.mark.parametrize("classes", [3, 10])
def test_monotone_inversion_of_the_reverse_sigmoid_brings_answers_closer(classes: int, beta: float) -> None:
    on = scene("monotone", f"reverse_sigmoid:beta={beta}", classes=classes, sharpness=20)
    before, after = on.distances(images(300, classes))
    assert after < 0.4 * before
    restored = on.recovery.query(images(300, classes))
    released = on.deployed.release(on.clean(images(300, classes)), images(300, classes))
    assert torch.equal(restored.argmax(dim=1), released.argmax(dim=1))


def test_monotone_inversion_is_exact_for_sure_answers_behind_the_reverse_sigmoid() -> None:
    """With all but one probability on the lowest piece, no guess is left."""
    on = scene("monotone", "reverse_sigmoid", classes=5, sharpness=10)
    sure = torch.cat([torch.ones(50, 1, 1, 1), 0.4 * images(50, 4)], dim=3)
    before, after = on.distances(sure)
    assert before > 0.2
    assert after < 2e-3


@pytest.mark.parametrize("defense", ["none", "label_only", "topk:k=3"])
def test_monotone_inversion_leaves_alone_what_no_function_explains_better(defense: str) -> None:
    on = scene("monotone", defense)
    released = on.deployed.release(on.clean(images(50)), images(50))
    assert torch.equal(on.recovery.query(images(50)), released)


# ------------------------------------------------------------------------------------------ completion


class Believer(nn.Module):
    """A clone that is right up to a factor on the logits."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(sharpness))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * images.flatten(1)


@pytest.mark.parametrize("defense", ["topk:k=2", "topk:k=4"])
def test_completion_with_a_perfect_clone_restores_a_cut_tail(defense: str) -> None:
    """Up to the bound: what is filled in stays below the smallest released probability by a step of the series."""
    before, after = scene("completion", defense, sharpness=8, clone=lambda: Believer(8.0)).distances(images(300))
    assert before > 0.005
    assert after < 0.35 * before


@pytest.mark.parametrize("defense", ["topk:k=3", "rounding:decimals=1", "rounding:decimals=2", "label_only"])
def test_completion_never_contradicts_what_was_released(defense: str) -> None:
    on = scene("completion", defense, clone=lambda: Believer(3.0))
    released = on.deployed.release(on.clean(images(200)), images(200))
    completed = on.recovery.query(images(200))
    zeros = released == 0
    changed = (completed != released).any(dim=1)
    assert float(changed.float().sum() / zeros.any(dim=1).float().sum()) > 0.5
    again = on.deployed.release(completed[changed], images(200)[changed])
    torch.testing.assert_close(again, released[changed], atol=2e-5, rtol=0)
    kept = (completed / released).where(~zeros, torch.nan)
    spread = kept.nan_to_num(nan=0).amax(dim=1) / kept.nan_to_num(nan=9).amin(dim=1)
    torch.testing.assert_close(spread, torch.ones(200), atol=1e-4, rtol=0)


def test_completion_fills_in_by_the_clones_proportions() -> None:
    on = scene("completion", "topk:k=1", clone=lambda: Believer(20.0), sharpness=20)
    sure = torch.tensor([1.0, 0.7, 0.6, 0.5, 0.4, 0.3]).view(1, 1, 1, 6)
    torch.testing.assert_close(on.recovery.query(sure), on.clean(sure))


@pytest.mark.parametrize("defense", ["none", "temperature:temperature=3", "noise"])
def test_completion_leaves_answers_alone_that_lack_nothing_or_fit_nothing(defense: str) -> None:
    on = scene("completion", defense, sharpness=5, clone=lambda: Believer(1.0))
    answered: list[Tensor] = []
    release = on.deployed.release
    on.deployed.release = lambda probs, asked: answered.append(release(probs, asked)) or answered[-1]
    assert torch.equal(on.recovery.query(images(50)), answered[0])


def test_completion_takes_the_clone_anew_evenly_over_the_budget() -> None:
    taken: list[int] = []

    def clone() -> nn.Module:
        taken.append(on.victim.spent)
        return Believer(20.0)

    on = scene("completion:refreshes=4", "topk:k=3", budget=100, clone=clone)
    for _ in range(20):
        on.recovery.query(images(5))
    assert taken == [0, 25, 50, 75]


def test_completion_resumes_with_the_clone_that_it_had() -> None:
    first = scene("completion:refreshes=1", "topk:k=3", clone=lambda: Believer(20.0), budget=100)
    first.recovery.query(images(5))
    later = scene("completion:refreshes=1", "topk:k=3", clone=lambda: Believer(1.0), budget=100)
    later.recovery.load_state_dict(first.recovery.state_dict())
    later.victim.load_state_dict(first.victim.state_dict())
    assert torch.equal(first.recovery.query(images(9)), later.recovery.query(images(9)))


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_what_was_refused_is_what_the_clone_believes_and_all_else_stays(classes: int) -> None:
    on = scene("refusals", classes=classes, clone=lambda: Believer(3.0))
    refused = torch.arange(40) % 3 == 0
    uniform = torch.full((40, classes), 1 / classes)
    on.deployed.release = lambda probs, asked: torch.where(refused[:, None], uniform, probs)
    answers, asked = on.recovery.query(images(40, classes)), images(40, classes)
    assert torch.equal(answers[~refused], on.clean(asked)[~refused])
    torch.testing.assert_close(answers[refused], (3 * asked.flatten(1)).softmax(dim=1)[refused])


def test_where_answers_are_labels_so_is_what_stands_for_a_refusal() -> None:
    on = scene("refusals", "label_only", clone=lambda: Believer(3.0), labels_only=True)
    release, refused, asked = on.deployed.release, torch.arange(40) % 3 == 0, images(40)
    on.deployed.release = lambda probs, some: torch.where(refused[:, None], 1 / 6, release(probs, some))
    assert on.recovery.labels_only
    believed = asked.flatten(1).argmax(dim=1)
    assert torch.equal(on.recovery.query(asked), F.one_hot(believed, 6).float())
    assert not scene("refusals").recovery.labels_only


def test_a_clone_is_taught_nothing_by_what_was_refused() -> None:
    clone = Believer(3.0)
    on = scene("refusals", clone=lambda: clone)
    on.deployed.release = lambda probs, asked: torch.full_like(probs, 1 / 6)
    answers = on.recovery.query(images(50))
    nn.functional.cross_entropy(clone(images(50)), answers).backward()
    assert abs(float(clone.scale.grad)) < 1e-6


# ----------------------------------------------------------------------------------------------- bayes


def test_the_table_is_the_mean_of_near_rows_of_the_same_top_class() -> None:
    clean = prior(500, 4, 0)
    released = (clean * 2 + 0.25) / 3
    answers = prior(60, 4, 1)
    restored = AnswerTable(clean, released).restore(answers, 0.2)
    for answer, mean in zip(answers, restored, strict=True):
        rows = released.argmax(dim=1) == answer.argmax()
        distances = (released[rows] - answer).abs().sum(dim=1)
        expected = clean[rows][distances <= max(0.2, float(distances.min()))].mean(dim=0)
        torch.testing.assert_close(mean, expected, atol=1e-4, rtol=1e-3)


def test_the_table_falls_back_to_the_nearest_and_then_to_the_answer() -> None:
    table = AnswerTable(
        torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0]]), torch.tensor([[0.7, 0.3, 0.0], [0.5, 0.3, 0.2]])
    )
    asked = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.9, 0.1], [0.5, 0.2, 0.3]])
    expected = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.6, 0.4, 0.0]])
    torch.testing.assert_close(table.restore(asked, 0.01), expected)


def test_a_dirichlet_sample_has_its_center_as_mean_and_the_declared_concentration() -> None:
    center = torch.tensor([[0.6, 0.3, 0.1]])
    drawn = dirichlet(center.expand(20_000, 3), 5)
    torch.testing.assert_close(drawn.mean(dim=0), center[0], atol=3e-3, rtol=0)
    torch.testing.assert_close(drawn.var(dim=0), (center * (1 - center))[0] / (8 * 3 + 1), atol=5e-4, rtol=0)


@pytest.mark.parametrize("spec", ["bayes:rows=100000", "oracle_bayes"])
@pytest.mark.parametrize("defense", ["reverse_sigmoid", "temperature:temperature=4", "mad", "mad:objective=raw"])
def test_bayes_brings_answers_closer(spec: str, defense: str) -> None:
    before, after = scene(spec, defense, classes=4).distances(images(300, 4))
    assert after < 0.6 * before


def test_bayes_moves_answers_by_as_much_as_its_table_is_coarse() -> None:
    _, coarse = scene("bayes:rows=1000", classes=4).distances(images(200, 4))
    _, fine = scene("bayes:rows=100000", classes=4).distances(images(200, 4))
    assert fine < coarse / 2 < 0.05


def test_bayes_keeps_the_top_class_behind_a_defense_that_does() -> None:
    on = scene("bayes:rows=20000", "temperature:temperature=4", classes=4)
    assert torch.equal(on.recovery.query(images(200, 4)).argmax(dim=1), on.clean(images(200, 4)).argmax(dim=1))


# ------------------------------------------------------------------------------------------------ ddae


def test_ddae_learns_from_answers_of_its_own_and_what_the_defense_makes_of_them() -> None:
    on = scene("ddae:rows=1001,shadows=3", "topk:k=2")
    clean, released = cast(Any, on.recovery)._pairs()
    assert clean.shape == released.shape == (1001, 6)
    assert torch.equal(on.deployed.release(clean, images(1001)), released)
    assert len(clean.argmax(dim=1).unique()) >= 4
    sureness = clean.amax(dim=1)
    assert float(sureness.min()) < 0.5 < 0.9 < float(sureness.max())
    assert not on.asked


def test_ddae_brings_answers_closer() -> None:
    on = scene("ddae:rows=20000,shadows=4,epochs=15", "reverse_sigmoid:beta=0.6")
    before, after = on.distances(images(300))
    assert after < 0.6 * before


def test_ddae_trains_once_and_resumes_with_what_it_learned() -> None:
    first = scene("ddae:rows=300,shadows=1,epochs=2", "temperature:temperature=3")
    answers = first.recovery.query(images(20))
    later = scene("ddae:rows=300,shadows=1,epochs=2", "temperature:temperature=3")
    later.recovery.load_state_dict(first.recovery.state_dict())
    cast(Any, later.recovery)._train = None  # must not be called
    assert torch.equal(later.recovery.query(images(20)), answers)
    assert torch.equal(first.recovery.query(images(20)), answers)


# --------------------------------------------------------------------------------------- what is known


def test_a_known_defense_shares_no_random_numbers_with_the_deployed_one() -> None:
    on = scene("completion", "noise")
    rebuilt, same = cast(Any, on.recovery).defense, on.clean(images(20))
    assert not torch.equal(rebuilt.release(same, images(20)), on.deployed.release(same, images(20)))
