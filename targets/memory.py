"""Work that is done in as few pieces as memory allows."""

import math
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..errors import MemoryShort

Result = TypeVar("Result")


class InPieces:
    """Does work on a batch in one piece, or, once that ran out of an accelerator's memory, in halves of halves.

    The size that fitted is kept for later batches; a `MemoryShort` warning says so.

    Args:
        what: what the batches are, and what it means to them to be taken in parts, for the warning.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.size: int | None = None

    def __call__(
        self, work: Callable[[slice], Result], count: int, *, restart: Callable[[], object] = lambda: None
    ) -> list[Result]:
        """The results of ``work`` on the pieces of a batch of ``count``, in order.

        Args:
            work: is given the place of a piece in the batch.
            restart: called before the first piece, and again before all is done over in smaller ones.

        Raises `torch.OutOfMemoryError` if a single one does not fit, or if a CUDA graph is being recorded: what failed
        there cannot go on, and the same work may well fit where it is not recorded.
        """
        while True:
            size = max(1, min(self.size or count, count))
            restart()
            try:
                return [work(slice(start, min(start + size, count))) for start in range(0, count, size)]
            except torch.OutOfMemoryError:
                if size == 1 or _recording():
                    raise
            self.size = math.ceil(size / 2)
            torch.cuda.empty_cache()
            warnings.warn(
                f"out of memory: {self.what} of {count} are taken {self.size} at a time from now on",
                MemoryShort,
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """The size that fitted."""
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with that size."""
        self.size = state["size"]


def _recording() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
