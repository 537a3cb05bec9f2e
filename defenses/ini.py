"""InI: a network whose answers train a student in the wrong direction, and not at all on unrelated images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..components import Paper, param
from ..targets.datasets.base import Images
from ..targets.training import train
from .base import Defense, DefenseContext, Traits
from .trained import trained


@dataclass(kw_only=True)
class InI(Defense):
    """Serve a network trained so that the gradients it gives a student mislead on its own data and vanish elsewhere.

    The student is an untrained network of the target's architecture, and stays untrained. Beside the defended
    network's cross-entropy, these are brought down, times their weights: minus the L1 distance between its logits
    (centered) and the student's on training images (``beta``); that distance on unrelated images (``gamma``); the
    cosine between the student's gradients of its divergence from the defended network and of its cross-entropy to
    the labels, on training images (``delta``); and the mean size of its gradient of that divergence on unrelated
    images (``epsilon``). Where the terms' gradients conflict, each is projected off the others, in random order
    (PCGrad, Yu et al., NeurIPS 2020), and the mean is followed.

    Guo et al. (ACM MM 2023). The default weights are those of the script that comes with their code, for
    CIFAR-10; that code's own defaults are all zero, which is plain training. Unrelated images are those that the
    target's data set declares as its pool, with which pool attacks query, where theirs are of Tiny ImageNet:
    name other images to keep the two apart. The divergence is the one that an attacker brings down,
    KL(defended ‖ student); ``divergence=reverse`` is KL(student ‖ defended), which their code computes.
    Deviations: the network is trained as the target was (AdamW, one cycle, the same number of epochs) rather
    than by 150 epochs of SGD, and the last weights are served.
    """

    beta: float = param(0.0, "weight of the distance to the student on training images, which is to be large", ge=0)
    gamma: float = param(0.3, "weight of the distance to the student on unrelated images, which is to be small", ge=0)
    delta: float = param(1.0, "weight of the cosine between the student's gradients on training images", ge=0)
    epsilon: float = param(1000.0, "weight of the student's mean absolute gradient on unrelated images", ge=0)
    unrelated: str = param("pool", "data set of unrelated images; pool is the one that the target's declares")
    divergence: Literal["forward", "reverse"] = param("forward", "KL(defended ‖ student), or KL(student ‖ defended)")

    paper: ClassVar[Paper | None] = Paper(
        key="guo2023isolation",
        title="Isolation and Induction: Training Robust Deep Neural Networks against Model Stealing Attacks",
        authors="Guo, Jun and Liu, Aishan and Zheng, Xingyu and Liang, Siyuan and Xiao, Yisong and Wu, Yichao and"
        " Liu, Xianglong",
        year=2023,
        venue="ACM International Conference on Multimedia",
        arxiv="2308.00958",
    )
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        needs=("surrogate", "data", "auxiliary", "queries"),
        stage="training",
        knob="epsilon",
        sweep=(0.0, 10.0, 100.0, 1000.0),
        preserves="Accuracy, nearly: a deterministic network of the same size answers, at the same cost.",
        weakness="It is trained against a student that never learns, on unrelated images of one kind. By default these "
        "are the pool that knockoff queries with, and only other queries tell what it is worth.",
    )

    def prepare(self, context: DefenseContext) -> None:
        """Train the network that is served."""
        data, unrelated = context.data(), context.auxiliary(self.unrelated)
        student = context.new_surrogate(context.stream("ini student")).to(context.device).eval()

        def fit(network: nn.Module) -> None:
            order = torch.Generator().manual_seed(context.stream("ini"))
            others = endless(unrelated, context.recipe.batch, order)

            def objective(images: Tensor, labels: Tensor) -> Tensor:
                losses = self.losses(network, student, images, labels, next(others))
                return with_gradients(list(network.parameters()), losses, order)

            train(
                network,
                data,
                context.recipe,
                seed=context.stream("ini data"),
                device=context.device,
                objective=objective,
            )

        fresh = context.new_surrogate(context.stream("ini network"))
        self.network = trained(fresh, fit, defense=self, context=context, data=[data, unrelated])

    @sdpa_kernel(SDPBackend.MATH)  # fused attention has no second derivative
    def losses(
        self, network: nn.Module, student: nn.Module, images: Tensor, labels: Tensor, others: Tensor
    ) -> list[Tensor]:
        """Cross-entropy and the terms that have a weight, weighted, for training images and other images."""
        weights = list(student.parameters())
        known, unknown = network(images), network(others)
        guessed, guessed_unknown = student(images), student(others)

        def isolation() -> Tensor:
            learned = _gradient(self.distance(known, guessed), weights)
            wanted = _gradient(F.cross_entropy(guessed, labels), weights, create_graph=False)
            return F.cosine_similarity(learned, wanted, dim=0)

        terms: list[tuple[float, Callable[[], Tensor]]] = [
            (self.beta, lambda: -F.l1_loss(_centered(known), guessed.detach())),
            (self.gamma, lambda: F.l1_loss(_centered(unknown), guessed_unknown.detach())),
            (self.delta, isolation),
            (self.epsilon, lambda: _gradient(self.distance(unknown, guessed_unknown), weights).abs().mean()),
        ]
        return [F.cross_entropy(known, labels), *(weight * term() for weight, term in terms if weight)]

    def distance(self, logits: Tensor, guessed: Tensor) -> Tensor:
        """The divergence (a scalar) between the defended network's logits and the student's, both (N, K)."""
        defended, own = logits.log_softmax(dim=1), guessed.log_softmax(dim=1)
        pair = (own, defended) if self.divergence == "forward" else (defended, own)
        return F.kl_div(*pair, reduction="batchmean", log_target=True)

    def deploy(self, target: nn.Module) -> nn.Module:
        """The network trained here."""
        return self.network

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """``probs`` (N, K) as they are: the network that gave them is the defense."""
        return probs


def _centered(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=1, keepdim=True)


def _gradient(loss: Tensor, weights: Sequence[Tensor], *, create_graph: bool = True) -> Tensor:
    """All of a loss's gradient as one vector (D,), itself differentiable if asked for."""
    parts = torch.autograd.grad(loss, weights, create_graph=create_graph, retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def endless(images: Images, batch: int, order: torch.Generator) -> Iterator[Tensor]:
    """Batches of images (N, C, H, W) without end, shuffled anew for every round."""
    while True:
        shuffled = torch.randperm(len(images), generator=order)
        for pixels, _ in images.batches(batch, order=shuffled):
            yield pixels


def with_gradients(weights: Sequence[Tensor], losses: Sequence[Tensor], order: torch.Generator) -> Tensor:
    """A scalar whose gradient is what `project_conflicting` makes of the losses' gradients, and whose value is nil."""
    gradients = torch.stack([_gradient(loss, weights, create_graph=False) for loss in losses])
    followed = project_conflicting(gradients, order)
    point = torch.cat([weight.flatten() for weight in weights])
    return ((point - point.detach()) * followed).sum()


def project_conflicting(gradients: Tensor, order: torch.Generator) -> Tensor:
    """The mean (D,) of gradients (L, D), each projected off those that point against it, one after the other."""
    projected = []
    for i, own in enumerate(gradients):
        for j in torch.randperm(len(gradients), generator=order).tolist():
            if j != i:
                other = gradients[j]
                against = (own @ other).clamp_max(0) / other.square().sum().clamp_min(1e-24)
                own = own - against * other
        projected.append(own)
    return torch.stack(projected).mean(dim=0)
