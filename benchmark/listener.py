"""What a run tells whoever watches it. The command line turns it into progress bars or plain lines."""

from collections.abc import Mapping

from ..leaderboard.record import CurvePoint


class Listener:
    """Hears what a run does; this one says nothing. Override what is of interest."""

    def phase(self, text: str) -> None:
        """A new part of the run begins: training the target, attacking, measuring."""

    def training(self, epoch: int, epochs: int, loss: float) -> None:
        """The target finished an epoch of its training."""

    def progress(self, spent: int, budget: int, losses: Mapping[str, float]) -> None:
        """The attack made progress. Called at most a few times a second."""

    def milestone(self, point: CurvePoint) -> None:
        """The clone was measured."""

    def warning(self, text: str) -> None:
        """Something a reader of the result should know."""
