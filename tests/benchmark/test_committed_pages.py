"""The committed pages are what the committed records say, byte for byte, and so are the README's first numbers."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from msbench.benchmark.cli.main import cli
from msbench.benchmark.spec import RunSpec, resolve
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


def test_the_first_numbers_of_the_readme_are_the_records() -> None:
    lines = iter((ROOT / "README.md").read_text(encoding="utf-8").splitlines())
    header = next(line for line in lines if line.startswith("| attack | none | label_only |"))
    columns = [column.partition(", ")[::2] for column in _cells(header)[1:]]
    next(lines)
    rows = [_cells(line) for line in iter(lambda: next(lines), "")]
    shown = {
        (attack, defense, recovery or "none"): number
        for attack, *numbers in rows
        for (defense, recovery), number in zip(columns, numbers, strict=True)
        if number
    }
    assert len(shown) == 15
    for (attack, defense, recovery), number in shown.items():
        assert number == _measured(attack, defense, recovery), (attack, defense, recovery)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _measured(attack: str, defense: str, recovery: str) -> str:
    """The agreement over all seeds that are recorded."""
    asked = resolve(RunSpec(attack=attack, defense=defense, recovery=recovery, budget=60_000)).info
    found = [
        record
        for record in Store(RECORDS / "digits").records()
        if record.status == "done" and record.spec.without_seeds() == asked.without_seeds()
    ]
    (cell,) = cells(found)
    return interval(cell.agreement)
