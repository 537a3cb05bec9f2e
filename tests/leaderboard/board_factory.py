"""Boards by hand, for tests of what is made from them: no records, no suite, no clock."""

import dataclasses
import random
from collections.abc import Callable
from datetime import date
from typing import Any

from msbench.leaderboard.board import (
    DROP_CAPS,
    L1_CAPS,
    Board,
    BoardTable,
    GateLine,
    Placed,
    Row,
    Score,
    Tier,
    meets,
)
from msbench.leaderboard.board_attacks import AttackLine
from msbench.leaderboard.board_entries import Submitted
from msbench.leaderboard.entries import Entry, PaperInfo
from msbench.leaderboard.record import ComponentInfo
from msbench.leaderboard.scoring import Estimate
from msbench.leaderboard.suites import Column, DefenseEntry, DefenseSetting, Setting
from pydantic import BaseModel

FLOOR, ACCURACY, SEEDS = 0.1, 0.98, (0, 1, 2)
QUERIES = (320, 960, 1920, 3840, 7680, 15_360, 30_080, 60_000)
ATTACKS = (
    ("dualstudent", "none", "ranked"),
    ("dualstudent", "argmax", "ranked"),
    ("disguide", "none", "ranked"),
    ("knockoff", "none", "ranked"),
    ("knockoff", "averaging:repeats=4", "ranked"),
    ("random_labels", "none", "floor"),
    ("dualstudent", "oracle_bayes", "reference"),
)
FAMILIES = ("deterministic", "randomized", "stateful", "training", "detection", "deterrent")
CONTROLS = ("none", "temperature", "label_only")


def _component(name: str) -> ComponentInfo:
    return ComponentInfo(name=name, version="1", params={})


def _column(attack: str, recovery: str, role: Any) -> Column:
    pool = "patches" if attack == "knockoff" else None
    setting = Setting(attack=_component(attack), clone="lenet5:norm=batch", pool=pool, precision="fp32")
    resolved = _component(recovery.partition(":")[0])
    return Column(attack=attack, recovery=recovery, role=role, resolved_recovery=resolved, settings=(setting,))


def _entry(name: str, family: Any, settings: int) -> DefenseEntry:
    specs = [name] if name in CONTROLS else [f"{name}:strength={0.1 * (i + 1):.1f}" for i in range(settings)]
    return DefenseEntry(
        name=name,
        family=family,
        summary=f"Releases something other than what {name} was asked for, in one sentence.",
        citation="Orekondy, Schiele, Fritz 2020, Prediction Poisoning, ICLR, arXiv 1906.10908",
        knob="strength",
        preserves="the top class",
        weakness="An attacker who keeps only the top class loses nothing.",
        needs=("logits",),
        argmax_preserving=True,
        stochastic=family == "randomized",
        settings=tuple(DefenseSetting(spec=spec, resolved=_component(name)) for spec in specs),
    )


def _score(column: int, accuracy: float, draw: random.Random) -> Score:
    curve = tuple((q, FLOOR + (accuracy - FLOOR) * (i / (len(QUERIES) - 1)) ** 1.5) for i, q in enumerate(QUERIES))
    sigma = max(0.0, (accuracy - FLOOR) / (ACCURACY - FLOOR))
    return Score(
        column=column,
        n=len(SEEDS),
        sigma=Estimate(sigma, 0.02 + 0.05 * draw.random(), len(SEEDS)),
        clone_accuracy=Estimate(accuracy, 0.03, len(SEEDS)),
        agreement=Estimate(accuracy, 0.03, len(SEEDS)),
        queries_to_half=15_360.0,
        curve=curve,
        band=tuple((max(0.0, accuracy - 0.04), min(1.0, accuracy + 0.03)) for _, accuracy in curve),
        seconds=20 + 60 * draw.random(),
        run_ids=tuple(f"{draw.randrange(16**12):012x}" for _ in SEEDS),
    )


def _row(defense: int, setting: str, strength: float, columns: tuple[Column, ...], draw: random.Random) -> Row:
    """A setting that costs more and resists better the greater its strength, from 0 to 1."""
    ranked = [i for i, column in enumerate(columns) if column.role == "ranked"]
    scores = tuple(
        _score(i, ACCURACY - (0.05 + 0.8 * strength) * draw.random() - 0.02 * i, draw)
        if i in ranked or setting == "none"
        else None
        for i in range(len(columns))
    )
    worst = max(ranked, key=lambda i: scores[i].sigma.mean)
    drop = 0.0 if strength < 0.3 else 0.15 * draw.random() * strength**3
    l1 = 1.6 * strength * draw.random()
    attack, recovery = columns[worst].attack, columns[worst].recovery
    return Row(
        defense=defense,
        setting=setting,
        scores=scores,
        worst=worst,
        worst_cases=(worst,),
        complete=True,
        accuracy=ACCURACY - drop,
        drop=drop,
        l1=l1,
        shifted_drop=1.3 * drop,
        shifted_l1=1.1 * l1,
        latency=1 + draw.random(),
        flags=("answers depend on the batch they are in",) if draw.random() < 0.15 else (),
        reproduce=f"msbench run --target digits/lenet5 --budget 60k --defense {setting} --attack {attack} "
        f"--recovery {recovery} --seed 0-2",
    )


def _tier(drop: float, l1: float, rows: list[Row], defenses: list[DefenseEntry]) -> Tier:
    """The least stolen share that meets both caps; ranks without ties."""
    best: dict[int, int] = {}
    for i, row in enumerate(rows):
        if meets(row, drop, l1) and (row.defense not in best or _sigma(row) < _sigma(rows[best[row.defense]])):
            best[row.defense] = i
    places, ranks = [], dict.fromkeys(FAMILIES, 0)
    for defense, row in sorted(best.items(), key=lambda item: _sigma(rows[item[1]])):
        family = defenses[defense].family
        if family in ranks:
            ranks[family] += 1
        places.append(
            Placed(defense=defense, row=row, rank=ranks.get(family), why="control" if family == "control" else "")
        )
    for defense in range(len(defenses)):
        if defense not in best:
            lacking = not all(row.complete for row in rows if row.defense == defense)
            why = "runs are missing" if lacking else "no setting meets both caps"
            places.append(Placed(defense=defense, row=None, rank=None, why=why))
    judged = [rows[row] for defense, row in best.items() if defenses[defense].family != "control"]
    return Tier(drop=drop, l1=l1, placed=tuple(places), attacks=tuple(_attack(i, judged) for i in range(len(ATTACKS))))


def _sigma(row: Row) -> float:
    return row.scores[row.worst].sigma.mean


def make_table(
    *, names: tuple[str, ...] = ("topk", "mad", "noise", "modelguard_s", "nasty_teacher", "prada", "dawn"),
    settings: int = 3, missing: bool = True, seed: int = 0, budget: int = 60_000, **changes: Any,
) -> BoardTable:  # fmt: skip
    """A table with the controls and the named defenses, which go round the families.

    ``missing`` takes the runs of the last defense's last setting against the second attack away.
    """
    draw = random.Random(seed)
    columns = tuple(_column(*attack) for attack in ATTACKS)
    defenses = [_entry(name, "control", 1) for name in CONTROLS]
    defenses += [_entry(name, FAMILIES[i % len(FAMILIES)], settings) for i, name in enumerate(names)]
    rows = []
    for d, defense in enumerate(defenses):
        for i, setting in enumerate(defense.settings):
            strength = 0.0 if d == 0 else (i + 1) / len(defense.settings)
            rows.append(_row(d, setting.spec, strength, columns, draw))
    if missing:
        scores = tuple(None if i == 1 else score for i, score in enumerate(rows[-1].scores))
        worst = max((i for i in (0, 2, 3, 4)), key=lambda i: rows[-1].scores[i].sigma.mean)
        rows[-1] = dataclasses.replace(rows[-1], scores=scores, complete=False, worst=worst, worst_cases=(worst,))
    runs = len(SEEDS) * (len(rows) * 5 + 2)
    table = BoardTable(
        target="digits/lenet5",
        budget=budget,
        seeds=SEEDS,
        num_classes=10,
        accuracy=ACCURACY,
        floor=FLOOR,
        columns=columns,
        defenses=tuple(defenses),
        rows=tuple(rows),
        gate=tuple(_gate(i, rows[0]) for i, column in enumerate(columns) if column.role == "ranked"),
        tiers=tuple(_tier(drop, l1, rows, defenses) for drop in DROP_CAPS for l1 in L1_CAPS),
        runs_done=runs - 3 * missing,
        runs_planned=runs,
        targets=("ab" * 32,),
        blockers=(),
        flags=(),
    )
    return dataclasses.replace(table, **changes)


def _gate(column: int, undefended: Row) -> GateLine:
    measured = undefended.scores[column].clone_accuracy
    return GateLine(column=column, measured=measured, reference=measured, threshold=0.03, holds=True)


def _attack(column: int, rows: list[Row]) -> AttackLine:
    shares = [row.scores[column].sigma.mean for row in rows if row.scores[column]]
    worst_for = sum(column in row.worst_cases for row in rows) if rows and ATTACKS[column][2] == "ranked" else None
    mean = sum(shares) / len(shares) if shares else None
    return AttackLine(column=column, sigma=mean, worst_for=worst_for, queries_to_half=15_360.0, seconds=42.0)


def without_worst_case(table: BoardTable, row: int) -> BoardTable:
    """The same table, from one of whose settings no attack stole anything."""
    scores = tuple(
        score and dataclasses.replace(score, sigma=Estimate(0.0, 0.0, len(SEEDS))) for score in table.rows[row].scores
    )
    changed = dataclasses.replace(table.rows[row], scores=scores, worst=0, worst_cases=())
    return dataclasses.replace(table, rows=(*table.rows[:row], changed, *table.rows[row + 1 :]))


def closed(table: BoardTable) -> BoardTable:
    """The same table with a gate that does not hold, and therefore without ranks."""
    gate = (dataclasses.replace(table.gate[0], reference=None, threshold=None, holds=False), *table.gate[1:])
    tiers = [
        dataclasses.replace(
            tier,
            placed=tuple(
                dataclasses.replace(p, rank=None, why=p.why or "nothing is ranked in this table yet")
                for p in tier.placed
            ),
        )
        for tier in table.tiers
    ]
    label = table.columns[gate[0].column].label
    blockers = (f"{label}: the baseline has no reference for it",)
    return dataclasses.replace(table, gate=gate, tiers=tuple(tiers), blockers=blockers)


def entry(name: str, **changes: Any) -> Entry:
    """What somebody wrote of a defense, or with ``attack`` of an attack; nothing is validated."""
    written = Entry(
        name=name,
        title=f"The idea of {name}",
        authors=("Ada Lovelace", "Alan Turing"),
        date=date(2026, 11, 22),
        code=f"https://example.org/{name}/tree/v1",
        license="MIT",
        contact="ada@example.org",
        paper=PaperInfo(title=f"On {name}", url=f"https://example.org/{name}.pdf", arxiv="2611.12345"),
        protocol="2026.1",
        suite="ci",
        defense=f"{name}.py:Plugin",
        access=("auxiliary",),
        auxiliary=("CIFAR-100, training split", "TinyImages"),
    )
    return written.model_copy(update=changes)


SUBMITTED = (
    Submitted(entry=entry("topk"), results=()),
    Submitted(
        entry=entry("storm", defense=None, attack="storm.py:Plugin"),
        results=("LOWERED: storm steals 0.900 of topk:strength=0.1 (published 0.800)",),
    ),
)
"""Who submitted one of the defenses, and an attack."""


def board_of(*tables: BoardTable, **changes: Any) -> Board:
    """A board of these tables, or of one."""
    board = Board(
        suite="ci",
        title="Regression on attack strength",
        text="digits/lenet5 with 60,000 queries: what two cores can pay for.",
        protocol="2026.1",
        tables=tables or (make_table(),),
        records="cd" * 32,
        submitted=SUBMITTED,
    )
    return dataclasses.replace(board, **changes)


def every_text(board: Board, change: Callable[[str], str]) -> Board:
    """The same board with every text in it changed, but for those that are one of a few words."""

    def walk(value: Any, field: str) -> Any:
        if field in {"family", "role", "precision"}:
            return value
        if isinstance(value, str):
            return change(value)
        if isinstance(value, Estimate):
            return value
        if isinstance(value, tuple):
            return tuple(walk(item, field) for item in value)
        if isinstance(value, BaseModel):
            return value.model_copy(
                update={name: walk(getattr(value, name), name) for name in type(value).model_fields}
            )
        if dataclasses.is_dataclass(value):
            names = [each.name for each in dataclasses.fields(value)]
            return dataclasses.replace(value, **{name: walk(getattr(value, name), name) for name in names})
        return value

    return walk(board, "")


def paths_of(board: Board) -> dict[str, str]:
    """A path for every run of a board."""
    return {
        run_id: f"digits/lenet5/{table.defenses[row.defense].name}/attack/none-s0-{run_id}.json"
        for table in board.tables
        for row in table.rows
        for score in row.scores
        if score
        for run_id in score.run_ids
    }
