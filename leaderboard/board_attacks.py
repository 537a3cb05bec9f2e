"""Attacks on a board: which are a setting's worst case, and the attacks' own table: what they stole at a tier."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from .scoring import ROUNDING, Estimate
from .suites import Column

if TYPE_CHECKING:
    from .board import Row

JUDGED_OVER = (
    "the defenses that are no controls, each with the setting with which it is placed at this tier, flagged or not; "
    "one that has none does not count. Attacks that tie for the worst case all count, and where nothing was stolen, "
    "none does"
)
"""What the table's means and counts are taken over, in every report's words."""


@dataclass(frozen=True, kw_only=True)
class AttackLine:
    """An attack in the attacks' own table."""

    column: int
    sigma: float | None
    """Mean stolen share over the defenses, each with its setting at the tier; None without any."""
    worst_for: int | None
    """Number of those defenses for which it is the worst case, alone or among others; None if it is not ranked, and
    without any."""
    queries_to_half: float | None
    """On the undefended target."""
    seconds: float | None
    """Per 100,000 queries, undefended."""


def attack_lines(columns: Sequence[Column], placed: Sequence["Row"], undefended: "Row | None") -> Iterator[AttackLine]:
    """A line for each column.

    Args:
        columns: of the table.
        placed: the rows with which a tier's defenses are placed, one for each, without controls.
        undefended: the bare target's row; None where the table has none.
    """
    for i, column in enumerate(columns):
        shares = [score.sigma.mean for row in placed if (score := row.scores[i]) and score.sigma]
        bare = undefended.scores[i] if undefended else None
        yield AttackLine(
            column=i,
            sigma=fmean(shares) if shares else None,
            worst_for=sum(i in row.worst_cases for row in placed) if placed and column.role == "ranked" else None,
            queries_to_half=bare.queries_to_half if bare else None,
            seconds=bare.seconds if bare else None,
        )


def worst_cases(shares: Mapping[int, Estimate]) -> tuple[int, ...]:
    """The columns with the largest mean stolen share, all that tie up to rounding; none where nothing was stolen.

    Args:
        shares: by column, those that are known of the ranked ones.
    """
    most = max((share.mean for share in shares.values()), default=0.0)
    return tuple(i for i, share in shares.items() if share.mean >= most - ROUNDING) if most > ROUNDING else ()
