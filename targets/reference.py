"""The targets that come with msbench: the very weights that its suites attack.

A recipe and a seed do not determine a target on every machine. Processors and thread counts round differently, training
carries that on, and two machines end with copies that are as unlike as those of two seeds. How much is stolen depends
on the copy as well as on the attack's seed, so scores of different machines would differ for no reason of attack or
defense. The copies that the packaged suites on small images attack were therefore trained once and come with the
package, each as a file of weights and its card; whatever is not here is trained on first use.

Torch is not imported: suites are put in order without it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("weights")
"""Where they lie, as in a cache: ``DATASET/ARCHITECTURE-….safetensors`` and a card in JSON beside it."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of a target whose weights are kept."""

    dataset: str
    architecture: str
    accuracy: float
    """On the test set, from 0 to 1."""
    seed: int
    recipe: dict[str, Any]
    digest: str
    """SHA-256 of the weight file."""
    trained_seconds: float

    @property
    def name(self) -> str:
        """``DATASET/ARCHITECTURE``."""
        return f"{self.dataset}/{self.architecture}"


def read_card(path: Path) -> Card | None:
    """The card in a file, or None if there is none that can be read."""
    try:
        return Card(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def cards(folder: Path = FOLDER) -> Iterator[Card]:
    """The cards of all targets in a folder, those that come with msbench by default; a damaged one is passed over."""
    found = [card for path in sorted(folder.glob("*/*.json")) if (card := read_card(path)) is not None]
    yield from sorted(found, key=lambda card: (card.name, card.seed))


def digests(name: str, version: str) -> dict[int, str]:
    """The weights that come with msbench for a target: of each copy's seed, the SHA-256.

    Args:
        name: ``DATASET/ARCHITECTURE``.
        version: of the recipe; those of another one are not the same targets.
    """
    return {card.seed: card.digest for card in cards() if (card.name, card.recipe.get("version")) == (name, version)}
