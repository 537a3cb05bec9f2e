"""Transfer attacks: adversarial examples made on the clone, shown to the target.

All are untargeted, in the L-infinity ball, on pixels in [0, 1]: FGSM (Goodfellow et al., 2015), one step; BIM
(Kurakin et al., 2017), ten steps from the image; PGD (Madry et al., 2018), ten steps from a random point.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..leaderboard.record import Transfer

STEPS = 10


def transfer_success(
    clone: nn.Module,
    target: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    seed: int,
    batch: int = 500,
) -> Transfer:
    """Share of the given images that the target gets wrong once they are perturbed on the clone.

    Args:
        images: (N, C, H, W) in [0, 1], all of which the target gets right.
        labels: (N,) true labels.
        epsilon: radius in pixel units.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    clone.requires_grad_(False)
    fooled = {"fgsm": 0, "bim": 0, "pgd": 0}
    for x, y in zip(torch.split(images, batch), torch.split(labels, batch), strict=True):
        noise = torch.empty_like(x).uniform_(-epsilon, epsilon, generator=generator)
        adversarial = {
            "fgsm": ascend(clone, x, x, y, epsilon, steps=1, size=epsilon),
            "bim": ascend(clone, x, x, y, epsilon, steps=STEPS, size=epsilon / STEPS),
            "pgd": ascend(clone, x, (x + noise).clamp(0, 1), y, epsilon, steps=STEPS, size=epsilon / 4),
        }
        for name, perturbed in adversarial.items():
            with torch.no_grad():
                fooled[name] += int((target(perturbed).argmax(dim=1) != y).sum())
    count = max(len(images), 1)
    return Transfer(epsilon=epsilon, images=len(images), **{name: hits / count for name, hits in fooled.items()})


def ascend(
    model: nn.Module,
    center: Tensor,
    start: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    steps: int,
    size: float,
) -> Tensor:
    """Signed gradient steps up the cross-entropy, clipped to the ball around ``center`` and to [0, 1]."""
    x = start
    for _ in range(steps):
        x = x.detach().requires_grad_(True)
        logits = model(x.clone())  # which a model may work on in place: center and start stay as they are
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), x)
        x = x.detach() + size * gradient.sign()
        x = torch.minimum(torch.maximum(x, center - epsilon), center + epsilon).clamp(0, 1)
    return x.detach()
