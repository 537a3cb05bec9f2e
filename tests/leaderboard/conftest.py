"""Records to order, so that a test states only what it is about."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from msbench.components import parse_spec
from msbench.leaderboard.baseline import Baseline, BaselineCell
from msbench.leaderboard.record import Record, SpecInfo, run_id
from msbench.leaderboard.suites import Column, DefenseEntry, FrozenSuite


def _component(spec: str) -> dict[str, Any]:
    name, params = parse_spec(spec)
    return {"name": name, "version": "1", "params": params}


def _defaults() -> dict[str, Any]:
    distance = {"mean": 0.08, "p95": 0.2, "max": 0.5}
    return {
        "schema_version": 6,
        "protocol": "2026.1",
        "status": "done",
        "spec": {
            "target": "digits/lenet5:seed=0",
            "defense": "topk:k=3",
            "attack": "dualstudent:lr_student=0.3",
            "recovery": "none",
            "clone": "lenet5",
            "pool": None,
            "budget": 60_000,
            "seed": 0,
            "defense_seed": 0,
            "precision": "fp32",
        },
        "target": {"accuracy": 0.987, "digest": "ab" * 32, "num_classes": 10, "image_shape": (1, 8, 8)},
        "budget": {"limit": 60_000, "spent": 60_000, "stop": "budget spent"},
        "stolen": {
            "clone_accuracy": 0.788,
            "agreement": 0.791,
            "agreement_released": 0.79,
            "kl": 0.61,
            "l1": 0.43,
            "queries_to_half": 15_000,
            "queries_to_90": None,
            "area_under_curve": 0.644,
            "transfer": {"epsilon": 0.3, "images": 987, "fgsm": 405 / 987, "bim": 513 / 987, "pgd": 543 / 987},
        },
        "paid": {
            "defended_accuracy": 0.987,
            "defended_accuracy_before": 0.987,
            "argmax_changed": 0.0,
            "l1": distance,
            "l1_queries": distance,
            "nll": 0.05,
            "ece": 0.01,
            "auroc": 0.93,
            "shifted": {"images": 1000, "undefended": 0.941, "defended": 0.94, "argmax_changed": 0.001, "l1": 0.1},
            "state_bytes": 0,
        },
        "curve": [
            {"queries": 15_000, "clone_accuracy": 0.5, "agreement": 0.51, "defended_accuracy": 0.987},
            {"queries": 60_000, "clone_accuracy": 0.788, "agreement": 0.791, "defended_accuracy": 0.987},
        ],
        "diagnostics": {
            "label_histogram": [6_000] * 10,
            "label_entropy": 2.302585,
            "query_distance": 0.31,
            "attack": {"disagreement_l1": 0.2},
        },
        "flags": [],
        "timing": {
            "created_utc": "2026-01-02T03:04:05+00:00",
            "wall": 41.5,
            "attack": 38.0,
            "evaluation": 2.5,
            "latency_ratio": {"1": 1.02, "256": 1.1},
            "resumed": 0,
            "peak_memory": 512_000_000,
        },
        "env": {
            "msbench": "0.1.0",
            "python": "3.11.9",
            "torch": "2.8.0",
            "timm": "1.0.20",
            "platform": "Linux-x86_64",
            "device": "cpu",
            "threads": 2,
            "compiled": False,
            "arithmetic": "3f2a91c07b5e",
            "commit": None,
            "dirty": None,
        },
        "error": None,
    }


def _unfinished(data: dict[str, Any]) -> None:
    data |= dict.fromkeys(("stolen", "paid", "diagnostics"))
    if data["status"] == "failed":
        data["error"] = {"type": "ContractViolation", "message": "released NaN", "traceback": "…"}


def _make(**overrides: Any) -> Record:
    data = _defaults()
    if overrides.get("status", "done") != "done":
        data["status"] = overrides["status"]
        _unfinished(data)
    for path, value in overrides.items():
        *sections, key = path.split("__")
        place = data
        for section in sections:
            place = place[section]
        place[key] = value
    spec = data["spec"]
    for kind in ("target", "defense", "attack", "recovery"):
        if isinstance(spec[kind], str):
            spec[kind] = _component(spec[kind])
    spec["protocol"] = data["protocol"]
    if spec["budget"] != data["budget"]["limit"]:
        data["budget"] |= {"limit": spec["budget"], "spent": spec["budget"]}
        if data["diagnostics"] and "diagnostics__label_histogram" not in overrides:
            data["diagnostics"]["label_histogram"] = [spec["budget"] // 10] * 10
    return Record.model_validate({"run_id": run_id(SpecInfo.model_validate(spec)), **data})


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    """Build a valid record; ``spec__defense="noise:scale=1"`` or ``stolen__kl=0.5`` overrides one value."""
    return _make


def _column(spec: str, role: str = "ranked", labels: str | None = None) -> dict[str, Any]:
    """``dfme``, ``dfme + argmax``; ``labels`` is what the attack is set to for answers that are labels."""
    attack, _, recovery = spec.partition(" + ")
    recovery = recovery or "none"
    settings = [
        {"attack": _component(each), "clone": "lenet5", "pool": None, "precision": "fp32"}
        for each in (attack, labels)
        if each is not None
    ]
    resolved = _component(recovery)
    return {
        "attack": attack,
        "recovery": recovery,
        "role": role,
        "resolved_recovery": resolved,
        "settings": settings,
    }


def _entry(name: str, family: str = "deterministic", settings: Sequence[str] = (), **traits: Any) -> dict[str, Any]:
    data = {
        "name": name,
        "family": family,
        "summary": f"What {name} does.",
        "citation": "",
        "knob": "k" if len(settings) > 1 else None,
        "preserves": "",
        "weakness": "",
        "needs": (),
        "argmax_preserving": False,
        "stochastic": False,
        "settings": [
            {"spec": each, "resolved": _component(each), "labels_only": name == "label_only"}
            for each in settings or [name]
        ],
    }
    return data | traits


CONTROLS = (
    _entry("none", "control", argmax_preserving=True),
    _entry("temperature", "control", ["temperature:t=2"], argmax_preserving=True),
    _entry("label_only", "control", argmax_preserving=True),
)


@pytest.fixture(scope="session")
def make_entry() -> Callable[..., DefenseEntry]:
    """A board's entry: ``make_entry("topk", settings=["topk:k=5", "topk:k=3"], stochastic=True)``."""
    return lambda *args, **traits: DefenseEntry.model_validate(_entry(*args, **traits))


@pytest.fixture(scope="session")
def make_column() -> Callable[..., Column]:
    """A board's column: ``make_column("dfme + argmax", role="reference")``."""
    return lambda *args, **keys: Column.model_validate(_column(*args, **keys))


@pytest.fixture(scope="session")
def make_suite() -> Callable[..., FrozenSuite]:
    """A suite of one table, with the three controls before the entries given."""

    def build(
        entries: Sequence[DefenseEntry] = (),
        columns: Sequence[Column] = (),
        seeds: Sequence[int] = (0, 1, 2),
        *,
        copies: bool = False,
    ) -> FrozenSuite:
        table = {
            "target": _component("digits/lenet5:seed=0"),
            "num_classes": 10,
            "budget": 60_000,
            "seeds": seeds,
            "copies": copies,
            "columns": columns or [_column("dfme"), _column("maze"), _column("dfme + argmax")],
            "defenses": [*CONTROLS, *entries],
        }
        return FrozenSuite.model_validate(
            {"name": "tiny", "protocol": "2026.1", "title": "Tiny", "text": "For tests.", "tables": [table]}
        )

    return build


@pytest.fixture(scope="session")
def make_runs(make_record: Callable[..., Record]) -> Callable[..., list[Record]]:
    """Records of all that a suite asks for: ``outcome(setting, column label, seed)`` gives the clone's accuracy.

    It may give a dictionary of ``clone``, ``defended``, ``l1``, ``shifted``, ``flags`` and ``curve`` instead, or None
    for a run that is missing.
    """
    base = make_record()
    assert base.stolen and base.paid and base.paid.shifted

    def run(spec: SpecInfo, outcome: float | dict[str, Any]) -> Record:
        found = outcome if isinstance(outcome, dict) else {"clone": outcome}
        l1 = base.paid.l1.model_copy(update={"mean": found.get("l1", 0.0)})
        shifted = base.paid.shifted.model_copy(update=found.get("shifted", {}))
        costs = {"defended_accuracy": found.get("defended", 0.987), "l1": l1, "shifted": shifted}
        paid = base.paid.model_copy(update=costs)
        stolen = base.stolen.model_copy(update={"clone_accuracy": found["clone"], "agreement": found["clone"]})
        updated = {"spec": spec, "run_id": run_id(spec), "stolen": stolen, "paid": paid}
        return base.model_copy(update=updated | {key: found[key] for key in ("flags", "curve") if key in found})

    def build(suite: FrozenSuite, outcome: Callable[[str, str, int], Any]) -> list[Record]:
        asked = (
            (table.spec(suite.protocol, column, entry, setting, seed), outcome(setting.spec, column.label, seed))
            for table in suite.tables
            for column, entry, setting in table.cells()
            for seed in table.seeds
        )
        return [run(spec, found) for spec, found in asked if found is not None]

    return build


@pytest.fixture(scope="session")
def make_baseline() -> Callable[..., Baseline]:
    """References for every ranked attack without recovery: ``make_baseline(suite, {"dfme": [0.7, 0.71, 0.69]})``."""

    def build(suite: FrozenSuite, reached: Mapping[str, Sequence[float]]) -> Baseline:
        cells = [
            BaselineCell(
                target=table.target.name,
                budget=table.budget,
                defense="none",
                attack=column.attack,
                recovery="none",
                seeds=tuple(range(len(reached[column.attack]))),
                clone_accuracy=tuple(reached[column.attack]),
            )
            for table in suite.tables
            for column in table.columns
            if column.role == "ranked" and column.recovery == "none"
        ]
        return Baseline(suite=suite.name, protocol=suite.protocol, cells=tuple(cells))

    return build
