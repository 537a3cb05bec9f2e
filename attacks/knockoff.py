"""Knockoff Nets: query images of another data set, train on the answers."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..components import Paper, param
from ..targets.blackbox import Victim
from ..targets.datasets.base import Images
from ..targets.persistence import restore, snapshot
from .base import AttackContext, AttackTraits, StepReport
from .learning import build_optimizer, descend, distillation_loss, for_training
from .transfer_set import PoolAttack


@dataclass(kw_only=True)
class KnockoffNets(PoolAttack):
    """Query a part of a pool of unrelated images, then train a clone on the transfer set.

    Images are drawn without replacement, and the clone is trained from scratch with soft cross-entropy (Orekondy,
    Schiele and Fritz, CVPR 2019, arXiv 1812.02766). The strategy ``random`` draws all images alike. ``adaptive``
    draws a class of the pool by a gradient bandit's policy, and then an image of that class; it rewards images
    that the victim is certain about, that differ from what it answered before, and that a student, which takes one
    training step on every batch of answers, gets wrong. At every milestone a clone is trained anew: the released
    code warm-starts larger budgets from smaller ones, which this does not. The pool is declared in the record.

    Deviations: the schedule is a decay over the training's epochs rather than a step after 60 of 100; momentum is
    0.9, not the released code's 0.5. That code refuses to run the adaptive strategy, so here it is ours in detail:
    the policy is flat over the pool's classes, without the paper's hierarchy of them; the three rewards are
    standardized by their running mean and deviation, as in the Adversarial Robustness Toolbox, and averaged; the
    baseline, and the answers that diversity is measured from, are averages over all batches before the present one
    (over itself for the first); the policy is updated once for a batch of queries, by the sum of its images'
    updates, and a query batch of 1 is the textbook's algorithm; the student's loss is taken before its step.
    """

    traits: ClassVar[AttackTraits] = AttackTraits(threat_model="pool", access="either", queries_per_step="B")
    paper: ClassVar[Paper] = Paper(
        key="orekondy2019knockoff",
        title="Knockoff Nets: Stealing Functionality of Black-Box Models",
        authors="Orekondy, Tribhuvanesh and Schiele, Bernt and Fritz, Mario",
        year=2019,
        venue="IEEE/CVF Conference on Computer Vision and Pattern Recognition",
        arxiv="1812.02766",
    )

    strategy: Literal["random", "adaptive"] = param("random", "how images are chosen: random or adaptive")

    def setup(self, victim: Victim, context: AttackContext) -> None:
        """Shuffle the pool; for the adaptive strategy, look through its labels too. Raises `UsageError` without one."""
        super().setup(victim, context)
        if self.strategy == "adaptive":
            classes = _classes(self.transfer_set.pool).to(context.device)
            self.bandit = ClassBandit(classes, self.transfer_set.order.to(context.device), context.generator("bandit"))
            self.rewards = Rewards(victim.num_classes, context.device)
            self.student = context.new_clone("student 0")
            self.student_optimizer = build_optimizer(
                self.optimizer, self.student.parameters(), lr=self.lr, weight_decay=self.weight_decay
            )

    def step(self) -> StepReport:
        """Query the next batch of the pool."""
        return super().step() if self.strategy == "random" else self._adaptive_step()

    def targets(self) -> Tensor:
        """The answers."""
        return self.transfer_set.answers

    def _adaptive_step(self) -> StepReport:
        """Query a batch that the bandit draws, reward it, and let the student learn from it."""
        count = self.affordable(self.query_batch)
        if count == 0:
            return self.report()
        actions, places = self.bandit.draw(count)
        images, answers = self.transfer_set.ask(self.victim, places)
        with torch.no_grad():
            surprise = distillation_loss(self.student.eval()(images), answers)
        surprise = surprise.nan_to_num(0, 0, 0)  # a student that diverged says nothing about images
        rewards = self.rewards(answers, surprise)
        self.bandit.update(actions, rewards)
        loss = distillation_loss(for_training(self.student, count)(images), answers).mean()
        descend(self.student_optimizer, loss)
        return self.report(student=loss.detach(), reward=rewards.mean())


def _classes(pool: Images) -> Tensor:
    """The class (N,) of each image of the pool, numbered from 0 without gaps."""
    labels = torch.cat([labels for _, labels in pool.batches(1024)])
    classes: Tensor = torch.unique(labels, return_inverse=True)[1]
    return classes


class ClassBandit:
    """A gradient bandit whose actions are the pool's classes, and who draws images of them without replacement.

    Preferences H make a policy, softmax(H), over the classes that have images left. An image of class a with
    reward r changes them by (r - baseline) / n(a) times the gradient of log softmax(H)[a], where n(a) counts how
    often the class was drawn (Sutton and Barto, Reinforcement Learning, section on gradient bandits).

    Args:
        classes: the class (N,) of each image of the pool, from 0.
        order: a permutation (N,) of the pool; a class's images are drawn in this order.
        generator: where draws come from.
    """

    def __init__(self, classes: Tensor, order: Tensor, generator: torch.Generator) -> None:
        self.images = order[torch.argsort(classes[order], stable=True)]
        self.sizes = torch.bincount(classes)
        self.starts = self.sizes.cumsum(0) - self.sizes
        self.drawn = torch.zeros_like(self.sizes)
        self.preferences = torch.zeros(len(self.sizes), device=classes.device)
        self.baseline = RunningMean(1, classes.device)
        self.generator = generator

    def log_policy(self) -> Tensor:
        """The log-probability (A,) that the next image is of each class; minus infinity if the class is used up."""
        return self.preferences.masked_fill(self.drawn == self.sizes, -torch.inf).log_softmax(dim=0)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Classes (N,) of ``count`` images in the order drawn, and the images' places (N,) in the pool.

        One image is drawn after the other, and a class that runs out leaves the policy, without a loop: let the
        images of each class arrive at random, at the rate of the class's probability. Then the first arrival is of
        class a with that probability, and so is each later one among the classes that have images to come.
        """
        device = self.preferences.device
        gaps = torch.empty(len(self.sizes), count, device=device).exponential_(generator=self.generator)
        arrivals = gaps.cumsum(dim=1).log() - self.log_policy()[:, None]
        turns = torch.arange(count, device=device)
        arrivals = arrivals.masked_fill(turns >= (self.sizes - self.drawn)[:, None], torch.inf)
        first = torch.topk(arrivals.flatten(), count, largest=False, sorted=True).indices
        actions, turn = first // count, first % count
        return actions, self.images[(self.starts + self.drawn)[actions] + turn]

    def update(self, actions: Tensor, rewards: Tensor) -> None:
        """Learn from the rewards (N,) of images of those classes (N,), which `draw` has given."""
        drawn = actions[:, None] == torch.arange(len(self.sizes), device=actions.device)
        times = (self.drawn + drawn.cumsum(dim=0))[torch.arange(len(actions), device=actions.device), actions]
        advantage = (rewards - self.baseline.before(rewards[:, None])) / times
        self.preferences += (advantage[:, None] * (drawn.float() - self.log_policy().exp())).sum(dim=0)
        self.drawn += drawn.sum(dim=0)

    def state_dict(self) -> dict[str, Any]:
        """What was drawn and learned; the images' order follows from the seed."""
        return snapshot(self, skip=("images", "sizes", "starts"))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        restore(self, state)


class Rewards:
    """The adaptive strategy's reward: certainty, diversity and loss, brought to one scale and averaged.

    Args:
        num_classes: K.
        device: where it is computed.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.answered = RunningMean(num_classes, device)
        self.terms = RunningMean(3, device)
        self.squares = torch.zeros(3, device=device)

    def __call__(self, answers: Tensor, surprise: Tensor) -> Tensor:
        """Rewards (N,) of a batch of answers (N, K) and the student's cross-entropy with them (N,)."""
        top = answers.topk(2, dim=1).values
        certainty = top[:, 0] - top[:, 1]
        diversity = (answers - self.answered.before(answers)).clamp_min(0).sum(dim=1)
        return self._standardized(torch.stack([certainty, diversity, surprise], dim=1)).mean(dim=1)

    def _standardized(self, terms: Tensor) -> Tensor:
        """Terms (N, 3), each less its mean so far and over its deviation; one that never varied becomes zero."""
        earlier, mean = self.terms.mean, self.terms.after(terms)
        self.squares = self.squares + ((terms - earlier) * (terms - mean)).sum(dim=0)
        deviation = (self.squares.clamp_min(0) / self.terms.seen).sqrt()
        constant = deviation <= 1e-5 * mean.abs()  # what varies less than that is rounding
        return torch.where(constant, 0, (terms - mean) / deviation)

    def state_dict(self) -> dict[str, Any]:
        """All averages."""
        return snapshot(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        restore(self, state)


class RunningMean:
    """The mean of all rows seen, without keeping them."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.mean = torch.zeros(width, device=device)
        self.seen = 0

    def before(self, rows: Tensor) -> Tensor:
        """The mean (D,) of the rows before these (N, D), or of these if they are the first; takes them in."""
        earlier, any_earlier = self.mean, self.seen > 0
        later = self.after(rows)
        return earlier if any_earlier else later

    def after(self, rows: Tensor) -> Tensor:
        """The mean (D,) of all rows with these (N, D); takes them in."""
        self.seen += len(rows)
        self.mean = self.mean + (rows - self.mean).sum(dim=0) / self.seen
        return self.mean

    def state_dict(self) -> dict[str, Any]:
        """The mean, and of how many."""
        return snapshot(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        restore(self, state)
