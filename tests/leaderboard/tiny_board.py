"""A board of a few cells: a frozen suite, an entry, and records that do not contradict themselves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msbench.leaderboard.board_check import runs_of
from msbench.leaderboard.entries import resolved_text
from msbench.leaderboard.record import ComponentInfo, Record, SpecInfo
from msbench.leaderboard.store import Store
from msbench.leaderboard.suites import (
    Column,
    DefenseEntry,
    DefenseSetting,
    FrozenSuite,
    Setting,
    Table,
    suite_text,
)

SEEDS = (0, 1, 2)


def component(name: str, **params: Any) -> ComponentInfo:
    return ComponentInfo(name=name, version="1", params=params)


def defense(name: str, *settings: str, family: str = "deterministic", **changes: Any) -> DefenseEntry:
    return DefenseEntry(
        name=name,
        family=family,
        summary="Mixes.",
        citation="",
        knob="share",
        preserves="",
        weakness="",
        needs=(),
        argmax_preserving=True,
        stochastic=False,
        settings=tuple(
            DefenseSetting(spec=spec, resolved=component(spec.partition(":")[0], share=spec.partition("=")[2]))
            for spec in settings or (name,)
        ),
        **changes,
    )


def column(attack: str, recovery: str = "none", role: str = "ranked", **params: Any) -> Column:
    setting = Setting(attack=component(attack, **params), clone="lenet5", pool=None, precision="fp32")
    return Column(
        attack=attack, recovery=recovery, role=role, resolved_recovery=component(recovery), settings=(setting,)
    )


def suite(*defenses: DefenseEntry, columns: tuple[Column, ...] = ()) -> FrozenSuite:
    table = Table(
        target=component("digits/lenet5", seed=0),
        num_classes=10,
        budget=20_000,
        seeds=SEEDS,
        columns=columns or (column("dualstudent", lr_student=0.3),),
        defenses=defenses or (defense("none", family="control"), defense("label_only", family="control")),
    )
    return FrozenSuite(name="tiny", protocol="2026.1", title="tiny", text="", tables=(table,))


def changes(info: SpecInfo, right: int) -> dict[str, Any]:
    """What a run measures whose clone gets so many of 1,000 test images right."""
    early, budget = right * 6 // 10, info.budget
    points = [(budget // 4, early / 1000), (budget, right / 1000)]
    half, ninety = (
        next((queries for queries, value in points if value >= share * 0.987), None) for share in (0.5, 0.9)
    )
    return {
        "spec": info.model_dump(),
        "curve": [
            {"queries": queries, "clone_accuracy": value, "agreement": value, "defended_accuracy": 0.987}
            for queries, value in points
        ],
        "stolen__clone_accuracy": right / 1000,
        "stolen__agreement": right / 1000,
        "stolen__queries_to_half": half,
        "stolen__queries_to_90": ninety,
        "stolen__area_under_curve": (early + right) / 2000,
        "stolen__kl": 0.6 + 0.01 * info.seed + right / 1e5 + len(info.attack.name) / 1e7,
    }


def record_of(make_record: Callable[..., Record], info: SpecInfo, right: int = 700, **more: Any) -> Record:
    return make_record(**changes(info, right + 3 * info.seed), **more)


def fill(store: Store, frozen: FrozenSuite, make_record: Callable[..., Record], right: int = 700) -> list[Path]:
    return [store.save(record_of(make_record, info, right)) for info in runs_of(frozen).values()]


ENTRY = """\
name = "blend"
title = "Blend"
authors = ["Ada Lovelace", "Alan Turing"]
date = 2026-11-22
code = "https://example.org/blend/tree/v1"
license = "MIT"
defense = "blend"
protocol = "2026.1"
suite = "tiny"
"""


def write_entry(board: Path, resolved: Any, text: str = ENTRY) -> Path:
    folder = board / "entries"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{resolved.name}.toml"
    path.write_text(text)
    path.with_suffix(".json").write_text(resolved_text(resolved))
    return path


def write_suites(folder: Path, frozen: FrozenSuite) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{frozen.name}.json").write_text(suite_text(frozen))


def edit(path: Path, **values: Any) -> None:
    """Change numbers of a record as with a text editor, ``stolen__kl=0.1``."""
    data = json.loads(path.read_text())
    for name, value in values.items():
        *sections, key = name.split("__")
        place = data
        for section in sections:
            place = place[section]
        place[key] = value
    path.write_text(json.dumps(data, sort_keys=True, indent=2, ensure_ascii=False) + "\n")
