"""The deployed path: target, then defense, then validation. Attackers and honest users both go through it.

A defense is handed copies only, of the target and of the images that it is asked about, and what it releases is copied
before it leaves. Whatever it does to them, then or later, the clean answers are the target's, the images whoever's they
were, and nobody's answers change once they are given.
"""

import copy

import torch
from torch import Tensor, nn

from ..errors import ContractViolation
from ..targets.memory import InPieces
from ..targets.target import Target
from .base import PRECEDENCE, Defense, ReleaseCheck, Stage, Verdict


class Deployment:
    """A defended target as it would be served.

    Args:
        target: the trained classifier, in evaluation mode; no defense ever gets hold of it.
        defense: the prepared defense.
        own: the copy of the target that the defense was prepared with, if it was given one.

    Raises `ContractViolation` for a defense that changed a copy of the target in place, but serves the target, where
    the change would be lost, and for one that serves another network without the stage for it.
    """

    def __init__(self, target: Target, defense: Defense, own: nn.Module | None = None) -> None:
        self.target = target
        self.defense = defense
        self.network = self._deployed(own)
        self.check = ReleaseCheck(str(defense), labels_only=defense.traits.labels_only)
        self.pieces = InPieces("queries")

    def _deployed(self, own: nn.Module | None) -> nn.Module:
        """The network that is served: the target itself, or another one of the defense's."""
        handed = copy.deepcopy(self.target)
        network = self.defense.deploy(handed)
        if network is not handed:
            self._expect_stage("training", "serves another network than the target")
            return network
        if not all(_same_weights(each, self.target) for each in (handed, own) if each is not None):
            raise ContractViolation(
                f"defense {self.defense} changed the target that it was handed in place, and serves the target as it "
                "was: return the changed network from deploy(), or change a copy of it (copy.deepcopy)"
            )
        return self.target

    @torch.no_grad()
    def answer(self, images: Tensor, account: str | None = None) -> tuple[Tensor, Tensor]:
        """The undefended target's and the released probabilities, each (N, K) float32, for images in [0, 1].

        Whoever asks under no account is a newcomer to the defense, batch by batch, and leaves no trace in what it
        keeps of single accounts. A state that all share knows no newcomers.

        The service computes in float32, whatever precision the attack that asks computes in. Raises
        `ContractViolation` if the defense releases anything but probability vectors.
        """
        images = images.float()
        with torch.autocast(images.device.type, enabled=False):
            clean = self._probabilities(self.target, images)
            seen = images.clone()
            served = clean.clone() if self.network is self.target else self._probabilities(self.network, seen)
            return clean, self.release(served, seen, account)

    @torch.no_grad()
    def serve(self, images: Tensor, account: str | None = None) -> Tensor:
        """The released probabilities alone: what a user waits for. See `answer`."""
        seen = images.float().clone()
        with torch.autocast(seen.device.type, enabled=False):
            return self.release(self._probabilities(self.network, seen), seen, account)

    def release(self, served: Tensor, images: Tensor, account: str | None = None) -> Tensor:
        """What the defense makes of answers (N, K) of the network that is served, checked; nobody else holds it.

        The defense may keep and change both arguments.
        """
        self.defense.attend(self.defense.told(account))
        return self.check(self.defense.release(served, images), served.shape).clone()

    def _probabilities(self, network: nn.Module, images: Tensor) -> Tensor:
        logits = self.pieces(lambda part: network(images[part]), len(images))
        return (torch.cat(logits) if len(logits) > 1 else logits[0]).float().softmax(dim=1)

    def verdict(self) -> Verdict | None:
        """What the defense made of the batch that was answered last; None if it detects nothing.

        Raises `ContractViolation` for a defense that judges without the stage for it, or has it and does not judge.
        """
        verdict = self.defense.verdict()
        if verdict is None:
            if self.defense.traits.stage == "detection":
                raise ContractViolation(
                    f"defense {self.defense} declares stage='detection', and gives no verdict: return what it flags "
                    "from verdict()"
                )
            return None
        self._expect_stage("detection", "gives a verdict on queries")
        return Verdict(flagged=verdict.flagged.clone(), refused=verdict.refused.clone())

    def _expect_stage(self, stage: Stage, why: str) -> None:
        """A chain may have a stage that comes before."""
        declared = self.defense.traits.stage
        if PRECEDENCE.index(declared) > PRECEDENCE.index(stage):
            raise ContractViolation(
                f"defense {self.defense} {why}, and declares stage={declared!r}: it is ranked among others of "
                f"stage={stage!r}, so declare that"
            )

    def settle(self) -> None:
        """Raise `ContractViolation` if anything but probability vectors was released; see `ReleaseCheck.settle`."""
        self.defense.settle()
        self.check.settle()


def _same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks have the same parameters and buffers, wherever and in whatever precision the first is."""
    ours, theirs = (dict(each.named_parameters()) | dict(each.named_buffers()) for each in (first, second))
    return ours.keys() == theirs.keys() and all(
        torch.equal(value.to(theirs[name].device), theirs[name]) for name, value in ours.items()
    )
