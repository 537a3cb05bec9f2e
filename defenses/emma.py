"""EMMA: a matrix that mixes the classes of every answer, fitted to mislead whoever learns from them."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..components import Paper, param
from ..errors import BadParameter
from ..targets.datasets.base import Images
from .base import Defense, DefenseContext, Traits
from .trained import trained

_LEAST = 1e-12
"""Entries of the matrix stay above this, as in the official code."""

_ABOVE_ONE = 1.000001
"""What the student's probabilities are subtracted from before the logarithm, as in the official code."""

_RISES = 3
"""Passes that end with the trace of the matrix above its lowest before fitting ends."""


@dataclass(kw_only=True)
class EMMA(Defense):
    """Release y·T, where T is one row-stochastic matrix for all answers y.

    T starts as the identity and is fitted on queries that an attacker might ask. A student, first distilled from the
    clean answers for a while, takes one step on a batch's answers y·T; T then moves down the gradient, through that
    step, of alignment·(-log (y·T)_top) + (1 - alignment)·(-log(1 - p_top)): the target's top class is to stay
    likely in what is released, and unlikely in p, the student's answer after the step. The student goes on to
    learn from y·T itself.

    Wu et al. (CVPR 2024). The defaults are those of the official code and instructions for CIFAR-10, where the
    alignment is varied from 0.0005 to 0.03; for CIFAR-100 they take a matrix rate of 1 and a tolerance of 0.0001. As
    there, fitting ends early once the mean entry changes less than the tolerance in a pass, or after three passes
    at the end of which the trace was above its lowest. Deviations: by default the assumed queries are the target's
    training images, theirs are the attacker's own, which must be named here; nothing is augmented, and the student
    has the target's architecture.
    """

    alignment: float = param(0.01, "weight of keeping the target's top class likely in what is released", ge=0, le=1)
    queries: str = param("data", "images to fit the matrix on: data (the target's own), pool, or a data set")
    matrix_rate: float = param(0.3, "the matrix's learning rate", gt=0)
    tolerance: float = param(0.01, "the mean change of an entry in a pass below which fitting ends", ge=0)
    early: int = param(20, "passes of the student over clean answers, before the matrix is fitted", ge=0)
    epochs: int = param(50, "passes in all, at most", ge=1)
    lr: float = param(0.1, "the student's learning rate at the start; it decays to a thousandth as a cosine", gt=0)
    weight_decay: float = param(5e-4, "the student's weight decay", ge=0)
    batch: int = param(256, "images per step", ge=1)

    paper: ClassVar[Paper | None] = Paper(
        key="wu2024efficient",
        title="Efficient Model Stealing Defense with Noise Transition Matrix",
        authors="Wu, Dong-Dong and Fu, Chilin and Wu, Weichang and Xia, Wenwen and Zhang, Xiaolu and others",
        year=2024,
        venue="IEEE/CVF Conference on Computer Vision and Pattern Recognition",
    )
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        needs=("surrogate", "data"),
        knob="alignment",
        sweep=(0.9, 0.5, 0.1, 0.03, 0.01, 0.003, 0.001),
        preserves="The top class of most answers, depending on the alignment; nothing is guaranteed.",
        weakness="It is a linear map, the same for all answers, which an attacker can estimate and invert.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early >= self.epochs:
            raise BadParameter(
                f"{self.label()}: early={self.early} of epochs={self.epochs} passes leave none to fit the matrix in"
            )
        if self.queries != "data":
            self.declare(needs=("surrogate", "auxiliary", "queries"))

    def prepare(self, context: DefenseContext) -> None:
        """Distill the student and fit the matrix."""
        target = context.target()
        images = context.data() if self.queries == "data" else context.auxiliary(self.queries)
        student = context.new_surrogate(context.stream("student")).to(context.device).float()
        self.transition = Transition(context.num_classes).to(context.device)
        trained(
            nn.ModuleList([student, self.transition]),
            lambda _: self._fit(student, self.transition, target, images, context.stream("order")),
            defense=self,
            context=context,
            data=[images],
        )

    @torch.enable_grad()
    def _fit(self, student: nn.Module, transition: "Transition", target: nn.Module, images: Images, seed: int) -> None:
        """Train the student throughout, and from the pass ``early`` on the matrix."""
        order = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(student.parameters(), self.lr, momentum=0.9, weight_decay=self.weight_decay)
        lowest, rises = transition.trace(), 0
        for epoch in range(self.epochs):
            rate = self._rate(epoch)
            optimizer.param_groups[0]["lr"] = rate
            before = transition.matrix.detach().clone()
            for pixels, _ in images.batches(self.batch, order=torch.randperm(len(images), generator=order)):
                student.train(len(pixels) > 1)  # batch normalization may refuse a single image
                with torch.no_grad():
                    answers = target(pixels).softmax(dim=1)
                if epoch >= self.early:
                    loss = outer_loss(student, transition.matrix, pixels, answers, rate, self.alignment)
                    transition.descend(loss, self.matrix_rate)
                learning = F.cross_entropy(student(pixels), answers @ transition.matrix.detach())
                optimizer.zero_grad()
                learning.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            if epoch < self.early:
                continue
            rises += transition.trace() > lowest
            lowest = min(lowest, transition.trace())
            if rises == _RISES or float((transition.matrix.detach() - before).abs().mean()) < self.tolerance:
                break

    def _rate(self, epoch: int) -> float:
        least = self.lr / 1000
        return least + (self.lr - least) * (1 + math.cos(math.pi * epoch / self.epochs)) / 2

    @torch.no_grad()
    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """``probs`` (N, K) times the matrix."""
        released: Tensor = probs.double() @ self.transition.matrix.double()
        return released.float()


class Transition(nn.Module):
    """A row-stochastic matrix (K, K), at first the identity.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(classes))

    def trace(self) -> float:
        """The sum of the diagonal."""
        return float(self.matrix.detach().trace())

    def descend(self, loss: Tensor, rate: float) -> None:
        """One step down the gradient of ``loss``; entries are kept positive and rows at a sum of one."""
        (gradient,) = torch.autograd.grad(loss, self.matrix)
        with torch.no_grad():
            moved = (self.matrix - rate * gradient).clamp_min(_LEAST)
            self.matrix.copy_(moved / moved.sum(dim=1, keepdim=True))


@sdpa_kernel(SDPBackend.MATH)  # fused attention has no second derivative
def outer_loss(
    student: nn.Module, matrix: Tensor, images: Tensor, answers: Tensor, rate: float, alignment: float
) -> Tensor:
    """What the matrix (K, K) is to bring down (a scalar), on images whose clean answers (N, K) are given.

    It depends on the matrix through what is released and through the student, which takes one step of plain gradient
    descent on that; the student itself stays as it is.
    """
    released = answers @ matrix
    weights: dict[str, Tensor] = dict(student.named_parameters())
    buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}

    def logits(at: dict[str, Tensor]) -> Tensor:
        answered: Tensor = functional_call(student, (at, buffers), (images,))
        return answered

    learning = F.cross_entropy(logits(weights), released)
    gradients = torch.autograd.grad(learning, list(weights.values()), create_graph=True)
    stepped = {
        name: weight - rate * gradient for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
    top = answers.argmax(dim=1, keepdim=True)
    kept = -released.gather(1, top).log().mean()
    misled = -(_ABOVE_ONE - logits(stepped).softmax(dim=1).gather(1, top)).log().mean()
    return alignment * kept + (1 - alignment) * misled
