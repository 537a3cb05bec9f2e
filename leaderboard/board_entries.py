"""A board with what was submitted to it: who entered its rows, and what submitted attacks do to them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .baseline import find_baseline
from .board import Board, make_board
from .board_check import attack_results
from .entries import Entry, Submission, belongs, defenses, with_defenses
from .record import Record
from .suites import DefenseEntry, FrozenSuite


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """One entry, as its authors wrote it."""

    entry: Entry
    results: tuple[str, ...]
    """Of an attack: what it does to published scores, a line for each setting. Empty for a defense, which has rows."""


def board_of(
    suite: FrozenSuite,
    records: Iterable[Record],
    submissions: Sequence[Submission],
    added: Iterable[DefenseEntry] = (),
) -> Board:
    """Score a suite, judged by its own baseline, with all that was submitted to it.

    Args:
        records: as `make_board` takes them.
        submissions: of any suite; those of another do not count.
        added: defenses that enter beside those that were submitted.

    Raises `UsageError` as `make_board`.
    """
    mine = [each for each in submissions if belongs(each.entry, suite)]
    attacks = {each.entry.name for each in mine if each.entry.kind == "attack"}
    known = list(records) if attacks else records  # which each attack goes through again
    board = make_board(suite, known, find_baseline(suite.name), [*defenses(suite, mine), *added])
    everyone = with_defenses(suite, mine)
    submitted = []
    for each in mine:
        results = attack_results(everyone, each, list(known)) if each.entry.name in attacks else ()
        submitted.append(Submitted(entry=each.entry, results=tuple(results)))
    return replace(board, submitted=tuple(submitted))
