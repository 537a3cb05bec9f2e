"""Nasty Teacher: a network that classifies as well as a normal one and whose other answers mislead."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import Paper, param
from ..targets.training import train
from .base import Defense, DefenseContext, Traits
from .trained import trained


@dataclass(kw_only=True)
class NastyTeacher(Defense):
    """Serve a network trained to be right and, apart from that, as unlike the normal target as it can.

    It starts untrained, with the target's architecture, and brings down CE(f, y) - omega·T²·KL(f ‖ target), the
    divergence being between answers softened by the temperature T; the target stays as it is. The top class is
    kept by the first term alone, and the second spreads mass over classes to which the target gives little.

    Ma et al. (ICLR 2021). The defaults are their released settings for CIFAR-10; for CIFAR-100 they are a temperature
    of 20 and an omega of 0.005. The divergence is taken in the direction that their code computes, from the nasty
    network's answers to the normal one's. Deviations: the network is trained as the target was (AdamW, one cycle, the
    same number of epochs) rather than by 160 epochs of SGD, and the last weights are served, where they keep the ones
    that do best on test data. Their threat model is distillation on the training data, not queries of a black box.
    What an omega costs depends on the data: on digits, where the target is right on 98.9 %, networks of one seed are
    on 94.0 with 0.04 and on 98.4 with 0.01 (docs/defenses.md).
    """

    temperature: float = param(4.0, "T, by which logits are divided before answers are compared", gt=0)
    omega: float = param(0.04, "weight of the divergence from the normal target", ge=0)

    paper: ClassVar[Paper | None] = Paper(
        key="ma2021undistillable",
        title="Undistillable: Making A Nasty Teacher That CANNOT teach students",
        authors="Ma, Haoyu and Chen, Tianlong and Hu, Ting-Kuei and You, Chenyu and Xie, Xiaohui and Wang, Zhangyang",
        year=2021,
        venue="International Conference on Learning Representations",
        arxiv="2105.07381",
    )
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        needs=("logits", "surrogate", "data"),
        stage="training",
        knob="omega",
        sweep=(0.005, 0.01, 0.02, 0.04, 0.08),
        preserves="Accuracy, nearly: a deterministic network of the same size answers, at the same cost.",
        weakness="The top class stays right where the training data are; elsewhere labels mislead as well. Students "
        "can be trained to learn from it all the same ('Distilling the Undistillable', ECCV 2022: not in msbench).",
    )

    def prepare(self, context: DefenseContext) -> None:
        """Train the network that is served."""
        data, target = context.data(), context.target()

        def fit(network: nn.Module) -> None:
            def objective(images: Tensor, labels: Tensor) -> Tensor:
                with torch.no_grad():
                    normal = target(images)
                return self.loss(network(images), normal, labels)

            train(
                network,
                data,
                context.recipe,
                seed=context.stream("nasty teacher data"),
                device=context.device,
                objective=objective,
            )

        fresh = context.new_surrogate(context.stream("nasty teacher"))
        self.network = trained(fresh, fit, defense=self, context=context, data=[data])

    def loss(self, logits: Tensor, normal: Tensor, labels: Tensor) -> Tensor:
        """The objective (a scalar) for nasty logits (N, K), the normal target's (N, K) and labels (N,)."""
        softened = (logits / self.temperature).log_softmax(dim=1)
        reference = (normal / self.temperature).log_softmax(dim=1)
        divergence = F.kl_div(reference, softened, reduction="batchmean", log_target=True)
        return F.cross_entropy(logits, labels) - self.omega * self.temperature**2 * divergence

    def deploy(self, target: nn.Module) -> nn.Module:
        """The nasty network."""
        return self.network

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """``probs`` (N, K) as they are: the network that gave them is the defense."""
        return probs
