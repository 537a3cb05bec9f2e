"""EMMA: the objective of its matrix by hand, and what the fitted matrix does."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from msbench.defenses.base import DefenseContext
from msbench.defenses.emma import EMMA, Transition, outer_loss
from msbench.errors import BadParameter
from torch import Tensor, nn
from torch.nn import functional as F

Make = Callable[..., DefenseContext]
Draw = Callable[..., Tensor]


def outer_loss_by_hand(
    student: nn.Module, matrix: Tensor, images: Tensor, answers: Tensor, rate: float, alignment: float
) -> float:
    """A copy of the student takes an ordinary step on what is released, and is asked again."""
    stepped = copy.deepcopy(student)
    released = (answers @ matrix).detach()
    optimizer = torch.optim.SGD(stepped.parameters(), rate)
    F.cross_entropy(stepped(images), released).backward()
    optimizer.step()
    tops = answers.argmax(dim=1)
    rows = torch.arange(len(tops))
    misled = -(1.000001 - stepped(images).softmax(dim=1)[rows, tops]).log().mean()
    kept = -released[rows, tops].log().mean()
    return (alignment * kept + (1 - alignment) * misled).item()


def test_the_matrix_moves_down_its_objective_through_the_step(context: Make, answers: Draw, images: Draw) -> None:
    student = context(4).new_surrogate(0).double().train()
    matrix = answers(4, 4, seed=1).double().requires_grad_(True)
    asked, clean = images(9).double(), answers(9, 4).double()
    settings = {"rate": 0.5, "alignment": 0.2}
    loss = outer_loss(student, matrix, asked, clean, **settings)
    assert loss.item() == pytest.approx(outer_loss_by_hand(student, matrix, asked, clean, **settings), abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, matrix)
    for row in range(4):
        for column in range(4):
            nudge = torch.zeros_like(matrix)
            nudge[row, column] = 1e-6
            above, below = (
                outer_loss_by_hand(student, matrix.detach() + sign * nudge, asked, clean, **settings)
                for sign in (1, -1)
            )
            assert float(gradient[row, column]) == pytest.approx((above - below) / 2e-6, abs=1e-7)


def test_a_step_keeps_the_rows_stochastic() -> None:
    transition = Transition(3)
    transition.descend((transition.matrix * torch.tensor([[1.0, -1, 0], [0, 5, 0], [-2, 0, 0]])).sum(), 0.5)
    expected = torch.tensor([[0.5, 0.5, 0], [0.5, 0, 0.5], [0.5, 0, 0.5]])
    expected[1] = torch.tensor([1e-12, 1e-12, 1e-12]) / 3e-12  # nothing is left but the floor
    torch.testing.assert_close(transition.matrix.detach(), expected)


def test_releases_the_answers_times_the_matrix(context: Make, answers: Draw, images: Draw) -> None:
    defense = EMMA(early=1, epochs=3, tolerance=0.0, batch=32)
    defense.prepare(context())
    matrix = defense.transition.matrix
    assert float(matrix.min()) > 0
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(10))
    assert not torch.equal(matrix, torch.eye(10))
    released = defense.release(answers(), images(50))
    torch.testing.assert_close(released, answers() @ matrix, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("moved", "passes"), [(0.05, 1), (5.0, 5)])
def test_fitting_ends_when_the_matrix_moves_little_on_average(
    context: Make, monkeypatch: pytest.MonkeyPatch, moved: float, passes: int
) -> None:
    """One of a hundred entries is moved by each descent, to and fro; the tolerance is a mean of 0.01."""
    begun: list[int] = []
    rate = EMMA._rate
    monkeypatch.setattr(EMMA, "_rate", lambda self, epoch: (begun.append(epoch), rate(self, epoch))[1])

    def descend(self: Transition, loss: Tensor, rate: float) -> None:
        with torch.no_grad():
            self.matrix[0, 0] += moved * (-1) ** len(begun)

    monkeypatch.setattr(Transition, "descend", descend)
    EMMA(early=0, epochs=5, batch=512, alignment=moved / 100).prepare(context(10))
    assert len(begun) == passes


def test_fitting_ends_when_the_diagonal_has_risen_three_times(context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    rate = EMMA._rate
    monkeypatch.setattr(EMMA, "_rate", lambda self, epoch: (begun.append(epoch), rate(self, epoch))[1])

    def descend(self: Transition, loss: Tensor, rate: float) -> None:
        with torch.no_grad():
            self.matrix[0, 0] += 5.0

    monkeypatch.setattr(Transition, "descend", descend)
    EMMA(early=0, epochs=9, batch=512, lr=0.02).prepare(context(10))
    assert len(begun) == 3


def test_the_matrix_has_a_rate_of_its_own(context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    monkeypatch.setattr(Transition, "descend", lambda self, loss, rate: rates.append(rate))
    EMMA(early=0, epochs=2, batch=512, matrix_rate=0.125, tolerance=0.0).prepare(context(10))
    assert set(rates) == {0.125}


def test_the_students_rate_falls_to_a_thousandth_along_a_cosine() -> None:
    emma = EMMA(lr=0.5, early=0, epochs=10)
    assert [emma._rate(epoch) for epoch in (0, 5, 10)] == pytest.approx([0.5, 0.25025, 0.0005])


def test_the_student_learns_from_what_is_released(context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a matrix that makes all answers equal, a student of a confident target becomes undecided."""
    students: list[nn.Module] = []
    monkeypatch.setattr(Transition, "descend", lambda self, loss, rate: self.matrix.data.fill_(0.25))
    monkeypatch.setattr(
        "msbench.defenses.emma.outer_loss", lambda student, *_: students.append(student) or torch.zeros(())
    )
    made = context(4)
    target = made.target()
    target[-1].weight.mul_(100)
    EMMA(early=0, epochs=30, batch=64, tolerance=0.0, lr=0.1).prepare(replace(made, target=lambda: target))
    pixels, _ = made.data().take(torch.arange(64))
    assert float(students[-1].eval()(pixels).softmax(dim=1).amax(dim=1).mean()) < 0.5


def test_less_alignment_takes_more_from_the_diagonal(context: Make) -> None:
    made, traces = context(4), []
    target = made.target()
    target[-1].weight.mul_(100)  # confident answers: for flat ones, the alignment prefers other matrices
    for alignment in (0.9, 0.1, 0.001):
        defense = EMMA(alignment=alignment, early=10, epochs=20, tolerance=0.0, lr=0.03, batch=64)
        defense.prepare(replace(made, target=lambda: target))
        traces.append(defense.transition.trace())
    assert traces == sorted(traces, reverse=True)
    assert traces[-1] < traces[0] - 0.2


def test_the_queries_are_declared(context: Make) -> None:
    assert EMMA().traits.needs == ("surrogate", "data")
    named = EMMA(queries="digits", early=0, epochs=1)
    assert named.traits.needs == ("surrogate", "auxiliary", "queries")
    asked: list[str] = []
    made = context()
    named.prepare(replace(made, auxiliary=lambda name: asked.append(name) or made.auxiliary(name)))
    assert asked == ["digits"]


def test_no_pass_left_for_the_matrix_is_refused() -> None:
    with pytest.raises(BadParameter, match="early=20 of epochs=20 passes leave none to fit the matrix in"):
        EMMA(epochs=20)
