"""What it means that a run was done again, and came out as its record says, or otherwise.

On the CPU a run is determined to the last bit by its spec, the target's weights, the versions of the libraries and the
processor's way of rounding, of which a record holds a digest. Anywhere else rounding makes another clone of it, which
must lie where other seeds lie. What honest users pay is none of the attack's doing: where the target's weights are the
record's, and the defense neither draws nor remembers nor learns, it is the same anywhere but for rounding. Otherwise it
must lie where other runs lie, as the clone must.

Where a record was made is its author's word. It can only convict: numbers of this machine must be reproduced, and those
of any other are compared with what was measured here.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, stdev
from typing import Any, Literal

from .baseline import FALSE_ALARMS, BaselineCell
from .leaves import Leaves, leaves
from .record import Record, Stolen, TargetInfo

MEASURED = ("target", "budget", "stolen", "paid", "curve", "diagnostics", "flags")
"""What a record says beside how long it took and where."""
STOLEN = {"stolen.clone_accuracy": 1.0, "stolen.agreement": 1.0}
"""What must lie within the spread of seeds on another machine, with the length of its range."""
CLEAN = {"target.accuracy": 1.0, "paid.shifted.undefended": 1.0}
"""What the undefended target is: the same wherever its weights are."""
PAID = {
    "paid.defended_accuracy": 1.0,
    "paid.defended_accuracy_before": 1.0,
    "paid.argmax_changed": 1.0,
    "paid.flagged": 1.0,
    "paid.refused": 1.0,
    "paid.l1.mean": 2.0,
    "paid.shifted.defended": 1.0,
    "paid.shifted.argmax_changed": 1.0,
    "paid.shifted.l1": 2.0,
}
"""What honest users pay, as far as a board counts it."""
EXACT = ("target.num_classes", *(f"target.image_shape.{i}" for i in range(3)), "paid.shifted.images")
"""What is the same anywhere."""
ROUNDING = 0.0025
"""Share of a range by which numbers may differ that only rounding tells apart: where a defense decides between two
answers, it may decide otherwise for an image of hundreds."""
WIDEST = 0.1
"""Share of a range beyond which what seeds explain is too wide to say anything of a record."""
_COLLAPSED = 2.0
"""A clone that agrees less often than so many times a guess may answer every image alike, as others of its kind do."""

Outcome = Literal["reproduced", "edited", "within", "beyond", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What running a record again said about it."""

    outcome: Outcome
    text: str
    differences: tuple[str, ...] = ()
    """Each value that differs, with both."""

    @property
    def holds(self) -> bool:
        """Whether the record may stand."""
        return self.outcome in ("reproduced", "within")


def judge(
    record: Record,
    again: Record,
    *,
    fresh: Sequence[Record] = (),
    beside: Sequence[Record] = (),
    constant: bool = False,
) -> Verdict:
    """Compare a record with the same run done again.

    Args:
        fresh: runs of the same cell done here under other seeds, which tell how far seeds spread.
        beside: finished runs of the cell that were done elsewhere, taken along where those done here are too few.
        constant: whether the defense answers honest users alike whatever was asked before and wherever it was set up:
            it neither draws nor remembers nor learns.
    """
    others = {each.run_id: each for each in beside if each.run_id != record.run_id}.values()
    mine, *here = (_said(each, record.schema_version) for each in (record, again, *fresh))
    differences = tuple(_differences(mine, here[0]))
    if not differences:
        return Verdict(outcome="reproduced", text="every number is reproduced, bit for bit")
    reason = _same_clone(record, again) or _same_machine(record, again)
    if reason:
        text = f"{len(differences)} numbers are not what the run gives, although {reason}"
        return Verdict(outcome="edited", text=text, differences=differences)
    there = [_said(each, record.schema_version) for each in others]
    fixed = (CLEAN | PAID if constant else CLEAN) if _same_weights(record, again) else {}
    lost = [*_lost_numbers(mine, here[0]), *_lost_flags(record, [again, *fresh])]
    return _elsewhere(list(_compared(mine, here, there, fixed)), lost, differences)


def threshold(values: Sequence[float], comparisons: int = 1) -> float | None:
    """How far one more seed may be from the mean of these, as a board judges means; None for fewer than two.

    Args:
        comparisons: how many numbers are compared at once; they share the false-alarm rate.
    """
    if len(values) < 2:
        return None
    cell = BaselineCell(
        target="", budget=1, defense="", attack="", recovery="",
        seeds=tuple(range(len(values))), clone_accuracy=tuple(values),
    )  # fmt: skip
    return cell.threshold(1, comparisons)


def cell_of(record: Record) -> str:
    """What is the same for all seeds of a cell."""
    return record.spec.without_seeds().model_dump_json()


# ------------------------------------------------------------------------------------------------- every number


def _said(record: Record, version: int) -> Leaves:
    """What a record says, as far as that version of the schema measured it."""
    data = record.model_copy(update={"schema_version": version}).model_dump(mode="json")
    return leaves({name: data[name] for name in MEASURED})


def _differences(mine: Leaves, again: Leaves) -> Iterator[str]:
    for name in sorted(mine.keys() | again.keys()):
        if mine.get(name) != again.get(name):
            yield f"{name}: {_text(mine.get(name))} in the record, {_text(again.get(name))} now"


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)


def may_have_collapsed(stolen: Stolen, target: TargetInfo) -> bool:
    """Whether a clone may answer every image alike, and so have the distances of any other that does."""
    return stolen.agreement < _COLLAPSED / target.num_classes


def _same_clone(record: Record, again: Record) -> str:
    """Distances of two clones agree to the last digit only if the clones are one, or both answer all images alike."""
    if record.stolen is None or again.stolen is None or again.target is None:
        return ""
    if may_have_collapsed(again.stolen, again.target):
        return ""
    same = record.stolen.kl == again.stolen.kl and record.stolen.l1 == again.stolen.l1
    return "it is the same clone to the last digit of its distances" if same else ""


def _same_machine(record: Record, again: Record) -> str:
    """Whether numbers must be equal here; empty if they need not."""
    there, here = record.env, again.env
    conditions = ("torch", "timm", "platform", "device", "threads", "compiled", "arithmetic")
    if here.arithmetic is None or any(getattr(there, name) != getattr(here, name) for name in conditions):
        return ""
    return (
        "versions, threads, rounding and the target's weights are the record's" if _same_weights(record, again) else ""
    )


def _same_weights(record: Record, again: Record) -> bool:
    return record.target is not None and again.target is not None and record.target.digest == again.target.digest


# -------------------------------------------------------------------------------------------- on another machine


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """One number of the record beside what was measured."""

    name: str
    mine: float
    values: tuple[float, ...]
    """One a run."""
    allowed: float | None
    """How far the record's may be from their mean; None where a single run cannot tell."""
    widest: float
    """How much may be allowed for it to say anything."""
    least: float = 0.0
    """What would be allowed after any number of runs that spread as these do."""

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def holds(self) -> bool:
        return self.allowed is None or abs(self.mine - self.mean) <= self.allowed

    @property
    def decides(self) -> bool:
        return self.allowed is not None and self.allowed <= self.widest

    def __str__(self) -> str:
        runs = f" over {len(self.values)} runs" if len(self.values) > 1 else ""
        return f"{self.name} {self.mine:.4f}, here {self.mean:.4f} ± {self.allowed or 0:.4f}{runs}"


def _compared(
    mine: Leaves, here: Sequence[Leaves], there: Sequence[Leaves], fixed: Mapping[str, float]
) -> Iterator[_Compared]:
    """What must lie near the numbers of runs done here, and, where these are few, of those done elsewhere.

    Args:
        fixed: what is the same as in the run done again, but for rounding.
    """
    for name, length in (STOLEN | CLEAN | PAID).items():
        measured = _values(here, name)
        if mine.get(name) is None or not measured:
            continue
        if name in fixed:
            near = ROUNDING * length
            yield _Compared(name=name, mine=mine[name], values=measured[:1], allowed=near, widest=near)
        else:
            yield _among_runs(name, mine[name], measured, _values(there, name), WIDEST * length)


def _among_runs(name: str, mine: float, here: tuple[float, ...], there: tuple[float, ...], widest: float) -> _Compared:
    """Runs done here are enough if they decide; those done elsewhere are their author's word."""
    comparisons = 1 if name in STOLEN else len(CLEAN | PAID)
    values, allowed = here, threshold(here, comparisons)
    if there and (allowed is None or allowed > widest):
        values = (*here, *there)
        allowed = threshold(values, comparisons)
    chance = NormalDist().inv_cdf(1 - FALSE_ALARMS / (2 * comparisons))
    least = chance * stdev(values) if len(values) > 1 else 0.0
    return _Compared(name=name, mine=mine, values=values, allowed=allowed, widest=widest, least=least)


def _values(runs: Sequence[Leaves], name: str) -> tuple[float, ...]:
    return tuple(run[name] for run in runs if run.get(name) is not None)


def _lost_numbers(mine: Leaves, again: Leaves) -> Iterator[str]:
    for name in EXACT:
        if again.get(name) is not None and mine.get(name) != again[name]:
            yield f"{name} {_text(mine.get(name))}, here {_text(again[name])}"
    for name in CLEAN | PAID:
        if mine.get(name) is None and again.get(name) is not None:
            yield f"{name} left out, here {_text(again[name])}"


def _lost_flags(record: Record, here: Sequence[Record]) -> Iterator[str]:
    """One that some runs raise and others do not is near its limit."""
    for flag in sorted(set.intersection(*(set(each.flags) for each in here)) - set(record.flags)):
        yield f"not flagged, as here: {flag}"


def _elsewhere(compared: Sequence[_Compared], lost: Sequence[str], differences: tuple[str, ...]) -> Verdict:
    against = [*lost, *(str(each) for each in compared if not each.holds)]
    if against:
        text = f"beyond what seeds and rounding explain, on another machine or other versions: {'; '.join(against)}"
        return Verdict(outcome="beyond", text=text, differences=differences)
    vague = [each for each in compared if not each.decides]
    if vague:
        text = f"another machine, or other versions, and {_why_undecided(vague)}"
        return Verdict(outcome="undecided", text=text, differences=differences)
    clone, rest = ([each for each in compared if (each.name in STOLEN) == stolen] for stolen in (True, False))
    text = (
        f"within what seeds and rounding explain, on another machine or other versions: "
        f"{'; '.join(map(str, clone))}; and {len(rest)} numbers of what honest users pay"
    )
    return Verdict(outcome="within", text=text, differences=differences)


def _why_undecided(vague: Sequence[_Compared]) -> str:
    if any(each.allowed is None for each in vague):
        return (
            "no other seed to tell how far apart runs may be: run it again with more --times, or where other seeds of "
            "the cell lie beside the record"
        )
    text = f"what seeds explain is too wide to tell: {'; '.join(map(str, vague))}; run it again with more --times"
    if any(each.least > each.widest for each in vague):
        text += ", though with seeds as far apart as these no number of runs decides"
    return text
