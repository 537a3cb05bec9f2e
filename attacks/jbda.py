"""JBDA: grow a few images into many by moving each along the substitute's gradient."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import Paper, param
from .base import AttackTraits
from .jacobian import JacobianAugmentation


@dataclass(kw_only=True)
class JBDA(JacobianAugmentation):
    """Jacobian-based data augmentation: each round labels x + lambda sign(gradient) for every image x so far.

    The gradient is that of the victim's label in a substitute trained from scratch on all answers so far, so that a
    round doubles the transfer set; a last round that the budget cuts short moves a random part of it (Papernot,
    McDaniel, Goodfellow, Jha, Celik and Swami, Asia CCS 2017, arXiv 1602.02697). A hundred seeds and six rounds
    make 6,400 queries; ``rounds=none`` goes on until the budget is spent.

    Deviations: seeds come from the pool, so they are not of the victim's classes as in the paper; where probabilities
    are released, networks learn them by soft cross-entropy (the paper has labels: add the recovery ``argmax``); the
    passes of each training are those of a public re-implementation, but substitutes learn at the clone's rate, a tenth
    of theirs, with momentum 0.9; pixels are clipped to [0, 1] and rounded to 8 bits before they are asked about; the
    substitute is the clone's architecture. Left out are reservoir sampling and the periodic change of lambda's sign.
    """

    traits: ClassVar[AttackTraits] = AttackTraits(threat_model="pool", access="either", queries_per_step="B")
    paper: ClassVar[Paper] = Paper(
        key="papernot2017practical",
        title="Practical Black-Box Attacks against Machine Learning",
        authors="Papernot, Nicolas and McDaniel, Patrick and Goodfellow, Ian and Jha, Somesh and Celik, Z. Berkay "
        "and Swami, Ananthram",
        year=2017,
        venue="ACM Asia Conference on Computer and Communications Security",
        arxiv="1602.02697",
    )

    step_size: float = param(0.1, "lambda, how far each pixel moves, where pixels span [0, 1]", gt=0, le=1)
    direction: Literal["label", "loss"] = param(
        "label", "what is raised: the label's logit, or (public re-implementations) the cross-entropy to the label"
    )

    def move(self, substitute: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """One step of lambda along the sign of the gradient; see `JacobianAugmentation.move`."""
        images = images.requires_grad_()
        logits = substitute(images).float()
        if self.direction == "label":
            raised = logits.gather(1, labels.unsqueeze(1)).sum()
        else:
            raised = F.cross_entropy(logits, labels, reduction="sum")
        [gradient] = torch.autograd.grad(raised, images)
        return (images.detach() + self.step_size * gradient.sign()).clamp(0, 1)
