"""What it means that a run was done again, and came out as its record says, or otherwise.

On the CPU a run is determined to the last bit by its spec, the target's weights, the versions of the libraries and the
processor's way of rounding, of which a record holds a digest. Anywhere else rounding makes another clone of it, which
must lie where other seeds lie.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .baseline import BaselineCell
from .record import Record

MEASURED = ("target", "budget", "stolen", "paid", "curve", "diagnostics", "flags")
"""What a record says beside how long it took and where."""
COMPARED = ("clone_accuracy", "agreement")
"""What must lie within the spread of seeds on another machine."""

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


def judge(record: Record, again: Record, seeds: Sequence[Record] = ()) -> Verdict:
    """Compare a record with the same run done again.

    Args:
        seeds: finished runs of the same cell under any seeds, which tell how far seeds spread.
    """
    differences = tuple(_differences(record, again))
    if not differences:
        return Verdict(outcome="reproduced", text="every number is reproduced, bit for bit")
    reason = _same_clone(record, again) or _same_machine(record, again)
    if reason:
        text = f"{len(differences)} numbers are not what the run gives, although {reason}"
        return Verdict(outcome="edited", text=text, differences=differences)
    return _within_seeds(record, again, seeds, differences)


def threshold(values: Sequence[float]) -> float | None:
    """How far one more seed may be from the mean of these, as the regression gate judges; None for fewer than two."""
    if len(values) < 2:
        return None
    cell = BaselineCell(
        target="", budget=1, defense="", attack="", recovery="",
        seeds=tuple(range(len(values))), clone_accuracy=tuple(values),
    )  # fmt: skip
    return cell.threshold(1, 1)


def cell_of(record: Record) -> str:
    """What is the same for all seeds of a cell."""
    return record.spec.without_seeds().model_dump_json()


# ------------------------------------------------------------------------------------------------- comparing


def _differences(record: Record, again: Record) -> Iterator[str]:
    one, other = (dict(_leaves(each)) for each in (record, again))
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            yield f"{name}: {_text(one.get(name))} in the record, {_text(other.get(name))} now"


def _leaves(record: Record) -> Iterator[tuple[str, Any]]:
    data = record.model_dump(mode="json")
    yield from _flat({name: data[name] for name in MEASURED}, "")


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)


def _same_clone(record: Record, again: Record) -> str:
    """Distances of two clones agree to the last digit only if the clones are one."""
    if record.stolen is None or again.stolen is None:
        return ""
    same = record.stolen.kl == again.stolen.kl and record.stolen.l1 == again.stolen.l1
    return "it is the same clone to the last digit of its distances" if same else ""


def _same_machine(record: Record, again: Record) -> str:
    """Whether numbers must be equal here; empty if they need not."""
    there, here = record.env, again.env
    if record.target is None or again.target is None or record.target.digest != again.target.digest:
        return ""
    conditions = ("torch", "timm", "platform", "device", "threads", "compiled", "arithmetic")
    if here.arithmetic is None or any(getattr(there, name) != getattr(here, name) for name in conditions):
        return ""
    return "versions, threads, rounding and the target's weights are the record's"


def _within_seeds(record: Record, again: Record, seeds: Sequence[Record], differences: tuple[str, ...]) -> Verdict:
    others = {each.run_id: each for each in seeds if each.run_id != record.run_id and each.stolen}
    spread = [*others.values(), again]
    findings, held = [], True
    for name in COMPARED:
        values = [getattr(each.stolen, name) for each in spread]
        allowed = threshold(values)
        if allowed is None:
            text = (
                "another machine, or other versions, and no other seed to tell how far apart runs may be: "
                "run it again with more --times, or where other seeds of the cell lie beside the record"
            )
            return Verdict(outcome="undecided", text=text, differences=differences)
        mean, mine = math.fsum(values) / len(values), getattr(record.stolen, name)
        held = held and abs(mine - mean) <= allowed
        findings.append(f"{name} {mine:.4f}, here {mean:.4f} ± {allowed:.4f} over {len(values)} runs")
    text = f"{'within' if held else 'beyond'} what seeds explain, on another machine or other versions: "
    return Verdict(outcome="within" if held else "beyond", text=text + "; ".join(findings), differences=differences)
