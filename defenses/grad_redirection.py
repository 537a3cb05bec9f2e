"""Gradient redirection: answers that steer the attacker's training steps towards a direction of the defender's."""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..components import Paper, param
from ..targets.datasets.base import Images
from .base import Defense, DefenseContext, Need, Traits
from .trained import trained

_AT_ONCE = 2**24
"""Gradients of single images that are held together, in numbers; what there are more is taken in turn."""

_SMALLEST = 1e-30
"""The smallest squared length of a step that is divided by; below it a surrogate agrees with y, and nothing is cut."""

Weights = dict[str, Tensor]
_duals: Any = forward_ad
"""Torch's numbers with a derivative; their functions are untyped."""


@dataclass(kw_only=True)
class GradientRedirection(Defense):
    """Move each answer, within an L1 budget, to where it drives a surrogate's weights furthest along a direction.

    The step that an attacker takes on a released answer z is the gradient of z·log p, p being the answer of its
    network, here of a surrogate. Released is the z on the simplex, at most epsilon from the target's answer y in
    L1, whose step has the largest inner product with the direction: class k is worth the derivative of log p_k
    along it, and half the budget goes to the most valuable class, from the least valuable ones upwards. Directions:
    ``all_ones``, the same for every query, so that steps add up (the authors' GRAD²); ``min_inner_product``, against
    the step under y, for each image its own; ``orthogonal``, all_ones without its part along the step under y, so
    that the step is turned aside and the clean one neither sought nor opposed, which between two classes leaves nothing
    to do; ``watermark``, the step that teaches one image of the defender's a random label.

    Mazeika, Li and Forsyth (ICML 2022). The derivatives of all classes are one forward-mode pass for a whole batch;
    theirs come from a second backward pass, which averages over the batch: under ``min_inner_product`` their
    answers depend on what else is asked, these do not. The solver is the authors', for all images at once. The
    surrogate has the target's architecture and is distilled from its answers with the authors' optimizer for 10
    of 50 epochs.
    Deviations: ``orthogonal`` is ours. They distill on the attacker's own queries; here the default is their
    variant on the defender's training images, and anything nearer to the attacker's must be named. Nothing is
    augmented. The watermark's image is one that the target was trained on, theirs a test image.
    """

    epsilon: float = param(0.9, "the largest L1 distance between released and clean answers", ge=0, le=2)
    direction: Literal["all_ones", "min_inner_product", "orthogonal", "watermark"] = param(
        "all_ones", "where training is steered: all_ones, min_inner_product, orthogonal or watermark"
    )
    surrogate: str = param(
        "data", "images to distill the surrogate on: data (the target's own), pool, or a data set; or untrained"
    )
    epochs: int = param(10, "passes of the surrogate over its images", ge=1)
    schedule: int = param(50, "passes after which the cosine decay of its learning rate would end", ge=1)
    lr: float = param(0.1, "the surrogate's learning rate at the start", gt=0)
    weight_decay: float = param(5e-4, "the surrogate's weight decay", ge=0)
    batch: int = param(128, "images per step of the surrogate", ge=1)

    paper: ClassVar[Paper | None] = Paper(
        key="mazeika2022steer",
        title="How to Steer Your Adversary: Targeted and Efficient Model Stealing Defenses with Gradient Redirection",
        authors="Mazeika, Mantas and Li, Bo and Forsyth, David",
        year=2022,
        venue="International Conference on Machine Learning",
        arxiv="2206.14157",
    )
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        needs=("surrogate", "data"),
        knob="epsilon",
        sweep=(0.1, 0.2, 0.5, 0.8, 0.9, 1.0),
        preserves="Answers within an L1 budget; confident ones keep their top class while it is below 1.",
        weakness="Labels alone undo it where the budget leaves the top class in place. It is made against one "
        "architecture at one stage of training, and where its surrogate is distilled on the target's own data, it "
        "hardly moves confident answers to images like those.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        needs: list[Need] = ["surrogate"]
        if self.surrogate == "data" or self.direction == "watermark":
            needs.append("data")
        if self.surrogate not in ("data", "untrained"):
            needs += ["auxiliary", "queries"]
        self.declare(needs=tuple(needs))

    def prepare(self, context: DefenseContext) -> None:
        """Build the surrogate, distill it from the target, and set the direction."""
        network = context.new_surrogate(context.stream("surrogate")).to(context.device).float()
        if self.surrogate != "untrained":
            network = self._distilled(network, context)
        self.network = network.eval().requires_grad_(False)
        _load_forward_mode()
        self.towards = self._direction(context)

    def _distilled(self, network: nn.Module, context: DefenseContext) -> nn.Module:
        images = context.data() if self.surrogate == "data" else context.auxiliary(self.surrogate)
        target = context.target()
        anywhere = replace(self, epsilon=0.0, direction="all_ones")  # the surrogate is the same for all of them
        return trained(
            network,
            lambda network: self._distill(network, target, images, context.stream("surrogate's images")),
            defense=anywhere,
            context=context,
            data=[images],
        )

    @torch.enable_grad()
    def _distill(self, network: nn.Module, target: nn.Module, images: Images, seed: int) -> None:
        """Train a network on the target's answers to images, by cross-entropy."""
        order = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(
            network.parameters(), lr=self.lr, momentum=0.9, weight_decay=self.weight_decay, nesterov=True
        )
        steps = math.ceil(len(images) / self.batch)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(self.schedule, self.epochs) * steps)
        for _ in range(self.epochs):
            for pixels, _ in images.batches(self.batch, order=torch.randperm(len(images), generator=order)):
                with torch.no_grad():
                    answers = target(pixels).softmax(dim=1)
                network.train(len(pixels) > 1)  # batch normalization may refuse a single image
                loss = F.cross_entropy(network(pixels), answers)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                decay.step()

    def _direction(self, context: DefenseContext) -> Weights:
        """The direction in the surrogate's weights; where each image has its own, what it is made from."""
        weights = dict(self.network.named_parameters())
        if self.direction != "watermark":
            return {name: torch.ones_like(weight) for name, weight in weights.items()}
        chance = torch.Generator().manual_seed(context.stream("watermark"))
        data = context.data()
        image, _ = data.take(torch.randint(len(data), (1,), generator=chance))
        label = torch.randint(context.num_classes, (1,), generator=chance).to(image.device)
        pull = vjp(self._logs(image), weights)[1]
        return dict(pull(F.one_hot(label, context.num_classes).float())[0])

    def _logs(self, images: Tensor) -> Callable[[Weights], Tensor]:
        """The surrogate's log p (N, K) for images (N, C, H, W), as a function of its weights."""
        buffers = dict(self.network.named_buffers())

        def logs(weights: Weights) -> Tensor:
            logits: Tensor = functional_call(self.network, (weights, buffers), (images,))
            return logits.log_softmax(dim=1)

        return logs

    def _turned_from(self, step: Weights) -> Weights:
        """The direction of an image whose step under y is this one: against it, or what is orthogonal to it."""
        if self.direction == "min_inner_product":
            return {name: -part for name, part in step.items()}
        share = _inner(self.towards, step) / _inner(step, step).clamp_min(_SMALLEST)
        return {name: self.towards[name] - share * step[name] for name in step}

    @torch.no_grad()
    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """``probs`` (N, K) moved by at most epsilon to the highest worth."""
        if self.direction == "orthogonal" and probs.shape[1] == 2:
            return probs.float()  # steps of two classes lie on one line: all worths are zero, but for rounding
        worth = self.worth(images.float(), probs)
        return redirect(probs.double(), worth, self.epsilon / 2).float()

    @sdpa_kernel(SDPBackend.MATH)  # fused attention has no derivative in forward mode
    def worth(self, images: Tensor, probs: Tensor) -> Tensor:
        """The derivative of every log p_k along the direction, (N, K), for images and the target's answers (N, K)."""
        weights = dict(self.network.named_parameters())
        if self.direction in ("all_ones", "watermark"):
            with _duals.dual_level():
                moving = {name: _dual(weight, self.towards[name]) for name, weight in weights.items()}
                with _Shortcuts(moving.values() if self.direction == "all_ones" else ()):
                    shared: Tensor = _duals.unpack_dual(self._logs(images)(moving)).tangent
            return shared

        def own(image: Tensor, answer: Tensor) -> Tensor:
            logs = self._logs(image.unsqueeze(0))
            step: Weights = vjp(logs, weights)[1](answer.unsqueeze(0))[0]
            along: Tensor = jvp(logs, (weights,), (self._turned_from(step),))[1]
            return along.squeeze(0)

        size = sum(weight.numel() for weight in weights.values())
        each: Tensor = vmap(own, chunk_size=max(1, _AT_ONCE // size))(images, probs)
        return each


class _Shortcuts(TorchFunctionMode):
    """Derivatives of a network's layers along a change of its weights, with less work than torch takes.

    - Torch convolves the change of the first convolution's images too, which is zeros and takes as long.
    - Where all weights of a layer change alike, so does all that it computes: one output stands for the others.
    - Torch picks a pooled change from each channel by itself, which is slow where channels lie side by side.

    Forward passes are all that an answer costs, so that a third of it is saved on small networks. The numbers are the
    same, but for rounding where one output stands for all.

    Args:
        uniform: the weights that change alike, which what a network computes from them need not do.
    """

    def __init__(self, uniform: Iterable[Tensor]) -> None:
        super().__init__()
        self.uniform = list(uniform)
        self.just: tuple[Tensor, Tensor] | None = None  # what the last call gave, where one change stands for all of it

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        just, self.just = self.just, None  # until the next call, which may work in place
        if func in (F.conv2d, F.linear) and len(args) >= 3 and not kwargs:
            return self._weighted(func, *args)
        if func is F.max_pool2d and args and args[0].dim() == 4 and not kwargs.get("return_indices"):
            alike = just[1] if just and just[0] is args[0] else None
            return self._pooled(alike, *args, **kwargs | {"return_indices": True})
        return func(*args, **kwargs)

    def _weighted(self, layer: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        value, drift = _duals.unpack_dual(inputs)
        kernel, slope = _duals.unpack_dual(weight)
        in_one_group = layer is F.linear or weight.shape[1] == value.shape[1]
        alike = in_one_group and self._is_uniform(weight) and (bias is None or self._is_uniform(bias))
        if slope is None or (layer is F.linear and not alike):
            result: Tensor = layer(inputs, weight, bias, *geometry)
            return result
        start, lift = (None, None) if bias is None else _duals.unpack_dual(bias)
        moved = layer(value, kernel, start, *geometry)
        change = (partial(_one_output, layer) if alike else layer)(value, slope, lift, *geometry)
        if drift is not None:
            return _dual(moved, layer(drift, kernel, None, *geometry).add_(change))
        if not alike:
            return _dual(moved, change)
        result = _dual(moved, torch.empty_like(moved).copy_(change))
        self.just = result, change
        return result

    def _is_uniform(self, weight: Tensor) -> bool:
        return any(weight is each for each in self.uniform)

    def _pooled(self, alike: Tensor | None, images: Tensor, *geometry: Any, **options: Any) -> Tensor:
        value, drift = _duals.unpack_dual(images)
        pooled: Tensor
        pooled, places = F.max_pool2d(value, *geometry, **options)
        if drift is None:
            return pooled
        count, channels, height, width = places.shape
        where = _channels_last(places)
        if alike is None:
            picked = _channels_last(drift).gather(1, where)
        else:
            picked = alike.flatten(1).gather(1, where.flatten(1))
        return _dual(pooled, picked.view(count, height, width, channels).permute(0, 3, 1, 2))


def _one_output(layer: Any, value: Tensor, slope: Tensor, lift: Tensor | None, *geometry: Any) -> Tensor:
    """The output, (N, 1) or (N, 1, H, W), of a layer whose weights are all alike and in one group."""
    slope, lift = slope[:1, :1], None if lift is None else lift[:1]
    made: Tensor
    if layer is F.linear:
        made = layer(value.sum(-1, keepdim=True), slope, lift)
        return made
    count = len(value)
    summed = value.sum(1, keepdim=True).transpose(0, 1)  # images as channels: torch is slow where there is but one
    slope, lift = slope.expand(count, -1, -1, -1), None if lift is None else lift.expand(count)
    made = layer(summed, slope, lift, *geometry[:3], groups=count)  # what is cut off is the one group
    return made.transpose(0, 1)


def _dual(value: Tensor, change: Tensor) -> Tensor:
    made: Tensor = _duals.make_dual(value, change)
    return made


def _channels_last(maps: Tensor) -> Tensor:
    """Maps (N, C, H, W) as (N, H·W, C)."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def _inner(a: Weights, b: Weights) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def _load_forward_mode() -> None:
    """Make torch load what it loads at the first forward-mode pass; torch 2.15 warns there of a part of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


def redirect(answers: Tensor, worth: Tensor, budget: float) -> Tensor:
    """The z (N, K) on the simplex with the largest z·worth of all that can be had by moving at most ``budget`` of y.

    All that is moved goes to the class of the highest worth; it is taken from the one of the lowest until that is
    empty, then from the next. Equal worths count in the order of the classes.

    Args:
        answers: y, (N, K) on the simplex.
        worth: (N, K), finite.
        budget: half the L1 distance.
    """
    order = worth.argsort(dim=1, stable=True)
    rising = answers.gather(1, order)
    before = rising.cumsum(dim=1) - rising
    taken = (budget - before).clamp_min(0).minimum(rising)
    taken[:, -1] = 0
    moved = rising - taken
    moved[:, -1] += taken.sum(dim=1)
    return torch.empty_like(answers).scatter_(1, order, moved)
