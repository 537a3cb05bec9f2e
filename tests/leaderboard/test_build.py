"""``msbench leaderboard build``: a folder that holds the page and the same numbers in other formats."""

import csv
import json
import re
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msbench.benchmark.cli.main import cli
from msbench.leaderboard.record import Record, run_id
from msbench.leaderboard.store import Store
from msbench.leaderboard.suites import load_suite


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_record) -> Store:
    """The first ten cells of the smoke suite, complete."""
    store, suite = Store(tmp_path_factory.mktemp("stores") / "my runs"), load_suite("smoke")
    table = suite.tables[0]
    for i, (column, entry, setting) in enumerate(islice(table.cells(), 10)):
        for seed in table.seeds:
            spec = table.spec(suite.protocol, column, entry, setting, seed)
            data = make_record(curve=[]).model_dump(mode="json")
            data |= {"protocol": suite.protocol, "spec": spec.model_dump(mode="json"), "run_id": run_id(spec)}
            data["budget"] |= {"limit": table.budget, "spent": table.budget}
            data["stolen"]["clone_accuracy"] = 0.5 + 0.04 * i
            store.save(Record.model_validate(data))
    return store


def call(*arguments) -> Result:
    return CliRunner().invoke(cli, ["leaderboard", "build", *map(str, arguments)])


@pytest.fixture(scope="module")
def site(store: Store) -> Path:
    """The folder with the smoke suite's board."""
    folder = store.root.parent / "deep" / "site"
    result = call("--suite", "smoke", "--store", store.root, "--out", folder)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{folder / 'index.html'}\n"
    return folder


@pytest.fixture(scope="module")
def page(site: Path) -> str:
    return (site / "index.html").read_text(encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_same_records_make_the_same_bytes(store: Store, site: Path) -> None:
    again = site.with_name("again")
    call("--suite", "smoke", "--store", store.root, "--out", again)
    first = contents(site)
    assert contents(again) == first
    assert {"index.html", "board.csv", "board.json", "board.md"} < first.keys()
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in site.rglob("*"))
    assert any(name.startswith("figures/") and name.endswith(".svg") for name in first)


@pytest.mark.slow
def test_several_suites_have_folders_of_their_own(store: Store, site: Path) -> None:
    both = site.with_name("both")
    call("--suite", "smoke", "--suite", "ci", "--store", store.root, "--out", both)
    found = contents(both)
    assert {name: data for name, data in contents(site).items() if name != "index.html"} == {
        name.removeprefix("smoke/"): data for name, data in found.items() if name.startswith("smoke/")
    }
    assert "ci/board.json" in found
    assert b'href="smoke/board.csv"' in found["index.html"]


def test_the_page_the_csv_and_the_json_say_the_same(site: Path, page: str) -> None:
    with (site / "board.csv").open(encoding="utf-8") as file:
        cells = [line for line in csv.DictReader(file) if line["role"] == "ranked"]
    heat = re.findall(r'<table class="sortable heat".*?</table>', page, re.DOTALL)[0]
    shown = {}
    for row in re.findall(r"<tr data-row=.*?(?=<tr|</tbody>)", heat, re.DOTALL):
        name, *texts = (re.sub(r"^[^>]*>|<[^>]+>", "", part).strip() for part in re.split("(?=<th|<td)", row)[1:])
        shown[name] = [text.split(" ")[0] for text in texts[2:]]
    for setting, texts in shown.items():
        mine = [line["sigma"] for line in cells if line["setting"] == setting]
        assert texts == [f"{float(sigma):.2f}" if sigma else "\N{EN DASH}" for sigma in mine]
    assert shown.keys() == {line["setting"] for line in cells}
    assert sum(bool(line["sigma"]) for line in cells) > 3
    data = json.loads((site / "board.json").read_text(encoding="utf-8"))
    assert [cell["sigma"] for cell in data["cells"] if cell["role"] == "ranked"] == [
        pytest.approx(float(line["sigma"])) if line["sigma"] else None for line in cells
    ]
    assert data["records"] in page


def test_records_are_linked_where_they_are(site: Path, page: str) -> None:
    links = re.findall(r'<a href="(\.\.[^"]*)"', page)
    assert links
    assert [link for link in links if not (site / link.replace("%20", " ")).is_file()] == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--suite", "smoke", "--store", "nowhere"), "no folder nowhere"),
        (("--suite", "smok"), "smoke"),
        (("--suite", "smoke", "--suite", "smoke"), "two suites are called smoke"),
        (("--suite", "smoke", "--records-url", "javascript:alert(1)"), "javascript"),
    ],
)
def test_what_cannot_be_built_is_refused_and_nothing_is_written(store: Store, arguments, reason) -> None:
    result = call("--store", store.root, *arguments)
    assert result.exit_code == 2
    assert reason in result.stderr
    assert not Path("site").exists()
