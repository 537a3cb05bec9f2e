"""``msbench leaderboard build``: a folder that holds the page and the same numbers in other formats."""

import csv
import json
import re
from html import unescape
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msbench.benchmark.cli.main import cli
from msbench.leaderboard import baseline, suites
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
    assert {"index.html", "records.html", "board.csv", "board.json", "board.md"} < first.keys()
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in site.rglob("*"))
    assert any(name.startswith("figures/") and name.endswith(".svg") for name in first)


@pytest.mark.slow
def test_several_suites_have_folders_of_their_own(store: Store, site: Path) -> None:
    both = site.with_name("both")
    call("--suite", "smoke", "--suite", "ci", "--store", store.root, "--out", both)
    found, pages = contents(both), ("index.html", "records.html")
    assert {name: data for name, data in contents(site).items() if name not in pages} == {
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


@pytest.fixture
def ranked(tmp_path: Path, make_suite, make_runs, make_baseline, make_entry, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with a board whose gate is open: shared ranks and others, a tie, flags, and what has no place."""
    names = {"alpha": "deterministic", "beta": "deterministic", "gamma": "deterministic", "delta": "randomized"}
    entries = [make_entry(name, family, [f"{name}:k=5", f"{name}:k=3"]) for name, family in names.items()]
    suite = make_suite([*entries, make_entry("costly", "stateful")])
    clone = {"alpha:k=5": 0.2, "beta:k=3": 0.45, "gamma:k=5": 0.46, "delta:k=3": 0.3}

    def found(setting, column, seed):
        flags = ["looks odd"] if setting in ("alpha:k=5", "delta:k=5", "none") else []
        less = 0.05 * (column == "maze" and setting != "gamma:k=5")
        return {
            "clone": clone.get(setting, 0.7) - less + seed / 100,
            "defended": 0.9 if setting == "costly" else 0.985,
            "l1": 0.123 if setting in clone else 0.0,
            "flags": flags,
        }

    reached = {"dfme": (0.7, 0.71, 0.72), "maze": (0.65, 0.66, 0.67)}
    for module, content in ((suites, suite), (baseline, make_baseline(suite, reached))):
        folder = tmp_path / module.__name__.rpartition(".")[2]
        folder.mkdir()
        (folder / "tiny.json").write_text(content.model_dump_json())
        monkeypatch.setattr(module, "FOLDER", folder)
    for record in make_runs(suite, found):
        Store(tmp_path / "runs").save(record)
    result = call("--suite", "tiny", "--store", tmp_path / "runs", "--out", tmp_path / "site")
    assert result.exit_code == 0, result.output
    return tmp_path / "site"


def page_ranking(text: str) -> dict[str, list[str]]:
    """The lines of the page's ranking that are seen, as texts of their cells, by the name in them."""
    table = re.findall(r'<table class="sortable ranking".*?</table>', text, re.DOTALL)[0]
    lines = [line for line in re.split(r"(?=<tr )", table) if re.match(r'<tr data-(row|defense)="\d+">', line)]
    cells = [
        [" ".join(unescape(re.sub(r"<[^>]+>", "", cell)).split()) for cell in re.split(r"<t[dh][^>]*>", line)[1:]]
        for line in lines
    ]
    return {line[1]: line for line in cells}


def markdown_rankings(text: str) -> dict[str, list[str]]:
    """The same of the rankings in Markdown, which all have the controls."""
    sections = [
        part for part in text.split("\n### ")[1:] if "· drop ≤" in part and "· attacks ·" not in part.split("\n")[0]
    ]
    rows = [line for part in sections for line in part.splitlines() if line.startswith("| ")]
    cells = [[cell.replace("**", "").strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in rows]
    return {line[0].replace("\\", ""): line for line in cells if line[0] not in ("defense", "---")}


def test_the_rankings_of_the_page_the_csv_and_markdown_say_the_same(ranked: Path) -> None:
    page = (ranked / "index.html").read_text(encoding="utf-8")
    shown, listed = page_ranking(page), markdown_rankings((ranked / "board.md").read_text(encoding="utf-8"))
    with (ranked / "board.csv").open(encoding="utf-8") as file:
        lines = {line["setting"]: line for line in csv.DictReader(file) if line["worst"] == "True"}
    assert "Gate open" in page
    assert list(shown) == list(listed)
    placed = {
        line["setting"] + " \N{DAGGER}" * bool(line["warnings"]): line
        for line in lines.values()
        if line["placed"] == "True"
    }
    nothing = "\N{EN DASH}"
    assert set(shown) - set(placed) == {"costly"}
    assert shown["costly"][0] == shown["costly"][2] == listed["costly"][1] == listed["costly"][2] == nothing
    assert shown["costly"][8] == listed["costly"][-1] == "no setting meets both caps"
    for name, line in placed.items():
        rank, _, share, by, accuracy, lost, distance, latency, why, flags = shown[name]
        _, their_rank, their_share, their_by, _, *paid, note = listed[name]
        value, half = float(line["worst_sigma"]), float(line["worst_sigma_interval"])
        assert rank == their_rank == (line["rank"] or nothing)
        assert share == their_share == f"{value:.2f} ± {half:.2f}"
        assert by == their_by == line["worst_case"]
        mean, spread = (100 * float(line[key]) for key in ("clone_accuracy", "clone_accuracy_interval"))
        assert accuracy == f"{mean:.1f} ± {spread:.1f}"
        assert [lost, distance, latency] == [paid[0], paid[1], paid[4]]
        assert paid == [
            f"{unit * float(line[key]):.{digits}f}"
            for key, unit, digits in (
                ("drop", 100, 1), ("l1", 1, 2), ("shifted_drop", 100, 1), ("shifted_l1", 1, 2), ("latency", 1, 2)
            )
        ]  # fmt: skip
        assert why == line["why"]
        assert flags == ("1" if line["warnings"] else "")
        assert note == {("", ""): "", ("", "1"): "flagged", (why, ""): why}.get((why, flags), f"{why} (flagged)")
    assert [line[0] for line in shown.values()] == [*[nothing] * 3, "1", "2", "2", "1", nothing]
    assert sum(" \N{DAGGER}" in name for name in shown) == 2
    assert [line[3] for line in shown.values()].count("dfme; maze; dfme + argmax") == 1


def test_records_are_linked_where_they_are(site: Path, page: str, store: Store) -> None:
    for text in (page, listed := (site / "records.html").read_text(encoding="utf-8")):
        links = re.findall(r'<a href="(\.\.[^"]*)"', text)
        assert links
        assert [link for link in links if not (site / link.replace("%20", " ")).is_file()] == []
    linked = {(site / link.replace("%20", " ")).resolve() for link in re.findall(r'<a href="(\.\.[^"]*)"', listed)}
    assert linked == {store.path_of(record).resolve() for record in store.records()}
    (section,) = re.findall(r'records\.html#(t0-d0)"', page)
    assert f'id="{section}"' in listed


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
