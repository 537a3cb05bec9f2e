"""What students learn from answers: targets, losses, optimizers and schedules, shared by the attacks.

Everything here is in float32 whatever the networks compute in: logarithms and L1 targets do not survive less.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..targets.blackbox import Victim

Schedule = Literal["multistep", "cosine", "constant"]
OptimizerName = Literal["sgd", "adam"]


def recover_logits(probs: Tensor, floor: float) -> Tensor:
    """Mean-centered log-probabilities (N, K): the victim's logits up to a constant per image.

    Softmax is shift invariant, so centering fixes the constant (Truong et al., CVPR 2021, section 3.3). The
    official implementations take the logarithm of unreleased logits; released answers hold exact zeros, so
    probabilities are floored first, and the floor is a recorded hyperparameter because it sets the scale.
    """
    logs = probs.clamp_min(floor).log()
    return logs - logs.mean(dim=1, keepdim=True)


def imitation_targets(answers: Tensor, *, floor: float, labels_only: bool) -> Tensor:
    """What students learn from answers (N, K): recovered logits (N, K), or labels (N,) where answers are labels."""
    return answers.argmax(dim=1) if labels_only else recover_logits(answers, floor)


def imitation_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """How far a student is from the victim, for each image: (N,) from student logits (N, K) and their targets.

    Mean absolute difference to recovered logits; cross-entropy to labels.
    """
    logits = logits.float()
    if targets.ndim == 1:
        return distillation_loss(logits, targets)
    return (logits - targets).abs().mean(dim=1)


def distillation_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (N,) of logits (N, K) with probabilities (N, K), or with labels (N,), image by image."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def progress(victim: Victim) -> float:
    """Share of the budget that is spent, from 0 to 1."""
    return victim.spent / max(victim.budget, 1)


def decay(schedule: Schedule, share: float, *, steps: tuple[float, ...] = (0.1, 0.3, 0.5)) -> float:
    """Factor on the learning rate when ``share`` of the budget is spent.

    ``multistep`` multiplies by 0.3 at each of ``steps``: 10, 30 and 50 % are the Dual Student and DFME papers' CIFAR-10
    setting.
    """
    if schedule == "multistep":
        return 0.3 ** sum(share >= step for step in steps)
    if schedule == "cosine":
        return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * share, dtype=torch.float64))))
    return 1.0


def for_training(network: nn.Module, images: int) -> nn.Module:
    """The network in training mode, or in evaluation mode for a batch of one, which has no statistics of its own.

    The last batch of a budget may be a single image, and batch normalization refuses one of 1x1 pixels.
    """
    training = images > 1
    if network.training != training:  # going through all modules takes longer than one might think
        network.train(training)
    return network


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode, without gradients for its weights."""
    network.eval().requires_grad_(False)
    try:
        yield network
    finally:
        network.requires_grad_(True)


def shuffled(count: int, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The places of ``count`` things in random order, on the generator's device, a batch at a time."""
    return torch.split(torch.randperm(count, generator=generator, device=generator.device), batch)


def build_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float, recorded: bool = False
) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, or Adam with torch's default betas; each step is one fused operation.

    For steps that are ``recorded`` as CUDA graphs the rate lies on the device, where replays find its present value,
    also after a state was loaded that a run without recording saved.
    """
    weights = list(parameters)
    optimizer: torch.optim.Optimizer
    if name == "sgd":
        optimizer = torch.optim.SGD(weights, lr=lr, momentum=0.9, weight_decay=weight_decay, fused=True)
    else:
        optimizer = torch.optim.Adam(weights, lr=lr, weight_decay=weight_decay, fused=True)
    form = partial(_form_groups, recorded=recorded)
    form(optimizer)
    optimizer.register_load_state_dict_post_hook(form)
    return optimizer


def _form_groups(optimizer: torch.optim.Optimizer, *, recorded: bool) -> None:
    """Bring the groups' rates into the form that steps need, whichever they have: loading takes over the saved one."""
    for group in optimizer.param_groups:
        rate = float(group["lr"])
        group["lr"] = torch.tensor(rate, device=group["params"][0].device) if recorded else rate
        if "capturable" in group:  # Adam's
            group["capturable"] = recorded


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the gradient of ``loss``."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
