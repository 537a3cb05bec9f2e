"""The committed pages are what the committed records say, byte for byte, and so are the README's first numbers."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from msbench.benchmark.cli.main import cli
from msbench.benchmark.spec import RunSpec, resolve
from msbench.benchmark.studies.detection import Row, as_table
from msbench.leaderboard.pages import interval
from msbench.leaderboard.scoring import cells
from msbench.leaderboard.store import Store

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "docs" / "records"


@pytest.mark.parametrize("page", ["attacks", "defenses"])
def test_its_command_makes_a_page_again(page: str, tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    command = ["study", page, "--render-only", "--store", str(RECORDS), "--output", str(out)]
    result = CliRunner().invoke(cli, command, prog_name="msbench")
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == (ROOT / "docs" / f"{page}.md").read_bytes()


@pytest.mark.parametrize("target", ["digits-lenet5", "mnist-lenet5"])
def test_the_tables_of_detectors_are_what_was_measured(target: str) -> None:
    docs = ROOT / "docs"
    rows = [Row(**row) for row in json.loads((docs / "detection" / f"{target}.json").read_text(encoding="utf-8"))]
    assert f"\n\n{as_table(rows)}\n\n" in (docs / "detection.md").read_text(encoding="utf-8")


def test_the_first_numbers_of_the_readme_are_the_records() -> None:
    columns, rows = _table("| attack | none | label_only |")
    shown = {
        (attack, *column.partition(", ")[::2]): number
        for attack, *numbers in rows
        for column, number in zip(columns, numbers, strict=True)
        if number
    }
    assert len(shown) == 15
    for (attack, defense, recovery), number in shown.items():
        asked = RunSpec(attack=attack, defense=defense, recovery=recovery or "none", budget=60_000)
        assert number == _measured(asked), asked


def test_the_numbers_on_mnist_of_the_readme_are_the_records() -> None:
    _, rows = _table("| attack | agreement % |")
    assert len(rows) == 4
    for attack, number in rows:
        asked = RunSpec(target="mnist/lenet5", attack=attack, defense="none", budget=100_000)
        assert number == _measured(asked), asked


def _table(header: str) -> tuple[list[str], list[list[str]]]:
    """The README's table that begins so: its columns but the first, and its rows."""
    lines = iter((ROOT / "README.md").read_text(encoding="utf-8").splitlines())
    columns = _cells(next(line for line in lines if line.startswith(header)))[1:]
    next(lines)
    return columns, [_cells(line) for line in iter(lambda: next(lines), "")]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _measured(asked: RunSpec) -> str:
    """The agreement over all seeds that are recorded."""
    spec = resolve(asked).info
    folder = RECORDS / asked.target / spec.defense.name / spec.attack.name
    found = [
        record
        for record in Store(folder).records()
        if record.status == "done" and record.spec.without_seeds() == spec.without_seeds()
    ]
    (cell,) = cells(found)
    return interval(cell.agreement)
