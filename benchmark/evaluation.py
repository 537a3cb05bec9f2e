"""Both sides of a run, measured on the target's held-out test set through the deployed path."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..defenses.deployment import Deployment
from ..leaderboard.record import CurvePoint, Diagnostics, Paid, Shifted, Stolen, Transfer
from ..targets.datasets.base import Dataset, Images, TensorImages
from . import metrics
from .reliability import CROWD, shifted, without_trace
from .traffic import Traffic, account_name
from .transfer import transfer_success

TRANSFER_IMAGES = 1000
"""Test images that transfer attacks start from: the first so many that the target gets right."""
NEAREST_IMAGES = 2000
"""Test images among which the nearest to a query is looked for."""
REPEATS = 20
"""Timings of either path per latency ratio, of which the quickest counts."""
REFUSED = -1
"""What stands for the top class of an answer that was refused: no class, so that it is never right."""


class Released(NamedTuple):
    """What honest users were answered."""

    probs: Tensor
    """(N, K)."""
    top: Tensor
    """(N,): the top classes, and `REFUSED` where there was no answer."""
    flagged: Tensor | None
    """bool (N,): who was taken for an attacker; None for a defense that detects nothing."""


class Evaluator:
    """Holds the test set and the undefended target's predictions on it.

    Honest users come as newcomers, 1,024 images each: nothing that the defense holds against the attack's account
    falls on them, and a measurement leaves no trace in what it remembers. Where a defense remembers, each goes by a
    name, as the attack does: one that asked more of those with a name would ask it of them.

    Args:
        deployment: target and defense as attackers and users meet them.
        dataset: the target's data set.
        test: its held-out images, which no attack ever sees.
        outside: unrelated images of the same shape, or None if there are none at hand.
        run_id: what the names of honest users are made of.
    """

    def __init__(
        self, deployment: Deployment, dataset: Dataset, test: Images, outside: Images | None, run_id: str
    ) -> None:
        self.deployment = deployment
        self.dataset = dataset
        self.test = test
        self.outside = outside
        self.run_id = run_id
        self.labels = metrics.all_labels(test)
        self.clean = metrics.predict(deployment.target, test)
        self.accuracy = metrics.share(self.clean.argmax(dim=1) == self.labels)

    def defended_accuracy(self) -> float:
        """Accuracy of the released answers on the test set, right now."""
        return metrics.share(self._released(self.test).top == self.labels)

    def milestone(self, clone: nn.Module, queries: int) -> CurvePoint:
        """The clone as it stands after so many queries."""
        clone_accuracy, agreement = self._reached(metrics.predict(clone, self.test))
        return CurvePoint(
            queries=queries,
            clone_accuracy=clone_accuracy,
            agreement=agreement,
            defended_accuracy=self.defended_accuracy(),
        )

    def stolen(self, clone: nn.Module, curve: Sequence[CurvePoint], seed: int) -> Stolen:
        """What the attacker got away with. The curve must end with this clone, see `ended`."""
        probs = metrics.predict(clone, self.test)
        clone_accuracy, agreement = self._reached(probs)
        return Stolen(
            clone_accuracy=clone_accuracy,
            agreement=agreement,
            agreement_released=metrics.share(probs.argmax(dim=1) == self._released(self.test).top),
            kl=metrics.kl_divergence(self.clean, probs),
            l1=metrics.distance(probs, self.clean).mean,
            queries_to_half=metrics.queries_to(curve, 0.5 * self.accuracy),
            queries_to_90=metrics.queries_to(curve, 0.9 * self.accuracy),
            area_under_curve=metrics.area_under_curve(curve),
            transfer=self._transfer(clone, seed),
        )

    def ended(self, curve: Sequence[CurvePoint], clone: nn.Module) -> list[CurvePoint]:
        """The curve with the final clone at its end, which may have learned since the last query was measured."""
        clone_accuracy, agreement = self._reached(metrics.predict(clone, self.test))
        final = {"clone_accuracy": clone_accuracy, "agreement": agreement}
        return [*curve[:-1], curve[-1].model_copy(update=final)]

    def paid(self, traffic: Traffic, before: float) -> Paid:
        """What the defense cost an honest user. ``before`` is the accuracy ahead of the attack."""
        seen = self._released(self.test)
        released = seen.probs
        return Paid(
            defended_accuracy=metrics.share(seen.top == self.labels),
            defended_accuracy_before=before,
            argmax_changed=1 - metrics.share(seen.top == self.clean.argmax(dim=1)),
            flagged=None if seen.flagged is None else metrics.share(seen.flagged),
            refused=None if seen.flagged is None else metrics.share(seen.top == REFUSED),
            l1=metrics.distance(released, self.clean),
            l1_queries=traffic.l1(),
            nll=metrics.negative_log_likelihood(released, self.labels),
            ece=metrics.calibration_error(released, seen.top == self.labels),
            auroc=self._auroc(released),
            shifted=self._shifted(),
            state_bytes=_size(self.deployment.defense.state_dict()),
        )

    def diagnostics(self, traffic: Traffic, attack: dict[str, float], auxiliary: Iterable[str] = ()) -> Diagnostics:
        """What the attack asked about; its own numbers are kept where they are finite.

        Args:
            auxiliary: data sets that the defense was given.
        """
        return Diagnostics(
            label_histogram=traffic.label_histogram(),
            label_entropy=traffic.label_entropy(),
            query_distance=self._nearest(traffic.last),
            attack={name: value for name, value in attack.items() if math.isfinite(value)},
            detection=traffic.detection(),
            auxiliary=sorted(set(auxiliary)),
        )

    def latency_ratio(self) -> dict[str, float]:
        """Time of the deployed path over that of the bare target, at batch sizes 1 and 256.

        Both are timed in turns, and the quickest call of each counts: a shared machine may be half as fast from one
        moment to the next. Asks the deployed path: measure last, since that may change a state that a defense keeps
        for all together.
        """
        images, _ = self.test.take(torch.arange(256) % len(self.test))
        return {str(size): round(self._ratio(images[:size]), 3) for size in (1, 256)}

    # --------------------------------------------------------------------------------------- internals

    def _ratio(self, batch: Tensor) -> float:
        deployed, bare = partial(self.deployment.serve, batch), partial(self._bare, batch)
        pairs = [(_seconds(deployed), _seconds(bare)) for _ in range(REPEATS)]
        return min(one for one, _ in pairs) / min(other for _, other in pairs)

    @torch.no_grad()
    def _bare(self, batch: Tensor) -> Tensor:
        answers: Tensor = self.deployment.target(batch).softmax(dim=1)
        return answers

    def _reached(self, probs: Tensor) -> tuple[float, float]:
        """Accuracy and agreement of a clone with these answers (N, K) to the test set."""
        return metrics.share(probs.argmax(dim=1) == self.labels), metrics.same_top(probs, self.clean)

    def _released(self, images: Images) -> Released:
        batches = [self._asked(pixels, str(i)) for i, (pixels, _) in enumerate(images.batches(CROWD))]
        flags = [batch.flagged for batch in batches if batch.flagged is not None]
        return Released(
            probs=torch.cat([batch.probs for batch in batches]),
            top=torch.cat([batch.top for batch in batches]),
            flagged=torch.cat(flags) if flags else None,
        )

    def _asked(self, pixels: Tensor, who: str) -> Released:
        """What a newcomer gets, who leaves no trace: what was measured before would be part of what costs after."""
        traits = self.deployment.defense.traits
        if not traits.stateful and "account" not in traits.needs:
            return self._served(pixels, None)
        with without_trace(self.deployment):
            return self._served(pixels, account_name(self.run_id, f"honest {who}"))

    def _served(self, pixels: Tensor, account: str | None) -> Released:
        probs = self.deployment.serve(pixels, account)
        verdict = self.deployment.verdict()
        top = probs.argmax(dim=1)
        if verdict is None:
            return Released(probs, top, None)
        return Released(probs, top.masked_fill(verdict.refused, REFUSED), verdict.flagged)

    def _shifted(self) -> Shifted:
        copy = shifted(self.test)
        with without_trace(self.deployment):
            seen = self._released(copy)
        clean = metrics.predict(self.deployment.target, copy)
        return Shifted(
            images=len(copy),
            undefended=metrics.share(clean.argmax(dim=1) == copy.labels),
            defended=metrics.share(seen.top == copy.labels),
            argmax_changed=1 - metrics.share(seen.top == clean.argmax(dim=1)),
            l1=metrics.distance(seen.probs, clean).mean,
        )

    def _transfer(self, clone: nn.Module, seed: int) -> Transfer:
        right = (self.clean.argmax(dim=1) == self.labels).nonzero().flatten()[:TRANSFER_IMAGES]
        images, labels = self.test.take(right.cpu())
        epsilon = 0.3 if self.dataset.grayscale_like_mnist else 8 / 255
        return transfer_success(clone, self.deployment.target, images, labels, epsilon=epsilon, seed=seed)

    def _auroc(self, released: Tensor) -> float | None:
        if self.outside is None:
            return None
        with without_trace(self.deployment):  # it may not be at hand, and costs must not depend on that
            unrelated = self._released(self.outside).probs
        return metrics.auroc(released.max(dim=1).values, unrelated.max(dim=1).values)

    def _nearest(self, queries: Tensor) -> float | None:
        if len(queries) == 0 or not isinstance(self.test, TensorImages):
            return None  # large images stay on disk, and are too long for nearest neighbors to mean much
        data, _ = self.test.take(torch.arange(min(NEAREST_IMAGES, len(self.test))))
        return metrics.nearest_distance(queries, data)


def _size(state: object) -> int:
    """Bytes of all tensors in a nested state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(_size(value) for value in state.values())
    if isinstance(state, list | tuple):
        return sum(_size(value) for value in state)
    return 0


def _seconds(call: Callable[[], object]) -> float:
    """How long the call takes, a GPU's part of it included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
