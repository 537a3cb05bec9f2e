"""The page as text: what stands in it, that nothing in it came of a stranger's text, and where its marks stand."""

import dataclasses
import importlib.util
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msbench.errors import UsageError
from msbench.leaderboard.board import L1_CAPS, SHOWN_FIRST, Board
from msbench.leaderboard.board_entries import Submitted
from msbench.leaderboard.board_report import grids, sheets, to_markdown
from msbench.leaderboard.scoring import RANK
from msbench.leaderboard.site import RECORDS, render_page, render_records
from msbench.leaderboard.site_charts import attack_curves, defense_curves, pareto, scatters

_spec = importlib.util.spec_from_file_location("board_factory", Path(__file__).with_name("board_factory.py"))
factory = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(factory)

HOSTILE = (
    '<script>alert(1)</script><img src=x onerror=alert(2)>" onmouseover="alert(3)" x="\' onfocus=\'alert(4)'
    "</style></title></textarea><!--<script>]]>{{ 7 * 7 }}{% raw %}javascript:alert(5)"
)
NOTHING, MARK = "\N{EN DASH}", " \N{DAGGER}"


class Page(HTMLParser):
    """Every element with its attributes and the text below it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, text):
        if self._inside == "script":
            self.scripts[-1] += text
        elif self._inside != "style":
            self.words.append(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def render(board: Board, **options) -> str:
    return render_page([board], **({"paths": factory.paths_of(board), "downloads": ["board.csv"]} | options))


@pytest.fixture(scope="module")
def board() -> Board:
    return factory.board_of(factory.make_table(), factory.closed(factory.make_table(budget=20_000, seed=1)))


def shape(page: Page) -> list[tuple[str, tuple[str, ...]]]:
    return [(tag, tuple(sorted(attributes))) for tag, attributes in page.elements]


def test_no_element_and_no_attribute_comes_of_a_stranger_s_text(board: Board) -> None:
    """Harmless text in the same places makes exactly the same elements with the same attributes."""
    paths = dict.fromkeys(["x"], "x")
    harmless = Page(render(factory.every_text(board, lambda _: "harmless"), paths=paths))
    hostile = Page(render(factory.every_text(board, lambda _: HOSTILE), paths=paths))
    assert shape(hostile) == shape(harmless)
    assert sum(HOSTILE in word for word in hostile.words) > 100
    assert len(hostile.scripts) == 2
    assert not any(name.startswith("on") for _, attributes in hostile.elements for name in attributes)
    for tag, attributes in hostile.elements:
        for name, value in attributes.items():
            if name in {"href", "src"}:
                assert re.match(r"#|board\.csv$|records\.html#t\d-d\d+$|data:,$", value), (tag, value)


def test_nor_does_any_in_the_list_of_records(board: Board) -> None:
    harmless, hostile = (
        Page(render_records([factory.every_text(board, lambda _, text=text: text)], paths={"x": "x"}))
        for text in ("harmless", HOSTILE)
    )
    assert shape(hostile) == shape(harmless)
    assert sum(HOSTILE in word for word in hostile.words) > 20
    assert hostile.scripts == []
    assert {each["href"] for _, each in hostile.elements if "href" in each} == {"data:,", "index.html"}


OFFSITE = [
    "javascript:alert(1)", "JavaScript:alert(1)", " https://example.org", "java\nscript:alert(1)", "//example.org",
    "data:text/html,<script>alert(1)</script>", "http://example.org/code", "https:javascript:alert(1)", HOSTILE,
]  # fmt: skip


@pytest.mark.parametrize("url", OFFSITE)
def test_a_stranger_s_address_that_is_not_https_is_shown_and_is_no_link(board: Board, url: str) -> None:
    page = Page(render(submitted_with(board, code=url, paper=factory.SUBMITTED[0].entry.paper.model_copy(
        update={"url": url}
    ))))  # fmt: skip
    assert not [each["href"] for _, each in page.elements if each.get("href", "#")[0] not in "#rbd"]
    assert page.text.count(" ".join(url.split())) >= 2 * 3  # a defense of two tables, and an attack


def test_a_stranger_s_https_address_is_a_link_that_says_nothing_and_nothing_but_a_link(board: Board) -> None:
    pages = [Page(render(submitted_with(board, code=f"https://example.org/{text}"))) for text in ("harmless", HOSTILE)]
    assert shape(pages[0]) == shape(pages[1])
    for page, text in zip(pages, ("harmless", HOSTILE), strict=True):
        (link,) = {tuple(each.items()) for tag, each in page.elements if text in each.get("href", "")}
        assert dict(link) == {"href": f"https://example.org/{text}", "rel": "noopener noreferrer nofollow"}
        assert len(page.scripts) == 2


def submitted_with(board: Board, **changes) -> Board:
    """The board with these words in what was submitted to it."""
    submitted = (dataclasses.replace(each, entry=each.entry.model_copy(update=changes)) for each in board.submitted)
    return dataclasses.replace(board, submitted=tuple(submitted))


def test_every_text_of_a_board_is_hostile_in_that_test(board: Board) -> None:
    """A text that the change leaves alone would not be tested: only words of a closed vocabulary and numbers remain."""
    remaining = re.findall(r"'([^']*)'", repr(factory.every_text(board, lambda _: "")))
    assert set(remaining) <= {"", "fp32", "ranked", "floor", "reference", "control", *factory.FAMILIES}


def test_data_for_the_script_cannot_end_its_element(board: Board) -> None:
    text = render(factory.every_text(board, lambda _: HOSTILE))
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert not re.search("[<>&]", data)
    assert json.loads(data)["tables"][0]["defenses"][0] == [HOSTILE, "control"]


def test_nothing_is_asked_of_a_network(board: Board) -> None:
    page = Page(render(board))
    assert not {tag for tag, _ in page.elements} & {"img", "iframe", "object", "embed", "video", "audio", "base"}
    links = [attributes["href"] for tag, attributes in page.elements if tag == "link"]
    assert links == ["data:,"]
    (policy,) = (each["content"] for tag, each in page.elements if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    css = Path(render_page.__globals__["FOLDER"], "page.css").read_text()
    assert "url(" not in css and "@import" not in css


def test_records_are_linked_below_the_given_folder(board: Board) -> None:
    page = Page(render(board, records_url="../my records/"))
    links = [each["href"] for tag, each in page.elements if tag == "a" and each["href"].startswith("..")]
    table = board.tables[0]
    row = table.rows[3]
    paths = factory.paths_of(board)
    for run_id in row.scores[row.worst].run_ids:
        assert f"../my records/{paths[run_id]}" in links
    with pytest.raises(UsageError, match="javascript"):
        render(board, records_url="javascript:alert(1)//")


def test_a_path_is_quoted(board: Board) -> None:
    run_id = board.tables[0].rows[0].scores[0].run_ids[0]
    assert 'href="records/a%20b/%22%3F%23.json"' in render(board, paths={run_id: 'a b/"?#.json'})


def test_without_scripts_every_score_of_the_board_can_be_read(board: Board) -> None:
    text = Page(render(board)).text
    for table in board.tables:
        for row in table.rows:
            shares = [
                "\N{EN DASH}" if score is None else f"{score.sigma.mean:.2f} ± {score.sigma.half:.2f}"
                for column, score in zip(table.columns, row.scores, strict=True)
                if column.role == "ranked"
            ]
            line = " ".join([row.setting + MARK * bool(row.flags), f"{100 * row.drop:.1f}", f"{row.l1:.2f}", *shares])
            assert line in text


def test_the_ranking_is_the_shown_tier_s(board: Board) -> None:
    html = render(board)
    for number, table in enumerate(board.tables):
        ranking = re.findall(r'<table class="sortable ranking".*?</table>', html, re.DOTALL)[number]
        tier = next(tier for tier in table.tiers if (tier.drop, tier.l1) == SHOWN_FIRST)
        lines = re.findall(r'<tr data-(row|defense)="(\d+)"><td>(.*?)<th', ranking)
        rank = {None: "\N{EN DASH}"}
        expected = [
            ("defense", str(p.defense), rank[None])
            if p.row is None
            else ("row", str(p.row), rank.get(p.rank, str(p.rank)))
            for p in tier.placed
        ]
        assert sorted(lines) == sorted(expected)
        for family in factory.FAMILIES:
            mine = [i for i, entry in enumerate(table.defenses) if entry.family == family]
            of_family = [each for place, each in zip(tier.placed, expected, strict=True) if place.defense in mine]
            assert [each for each in lines if each in of_family] == of_family


def cards_of(html: str, table: int = 0) -> list[str]:
    """The cards of a table's defenses, in its order."""
    section = html.split("<h3>The defenses</h3>")[table + 1].partition("</section>")[0]
    return section.split('<details class="card"')[1:]


def test_a_card_says_who_submitted_its_defense_and_no_other_does(board: Board) -> None:
    names = [entry.name for entry in board.tables[0].defenses]
    facts = {name: Page(f"<p {card}").text for name, card in zip(names, cards_of(render(board)), strict=True)}
    said = (
        "Submitted The idea of topk, by Ada Lovelace, Alan Turing, 2026-11-22 "
        "Code https://example.org/topk/tree/v1 License MIT "
        "Paper On topk, arXiv 2611.12345, https://example.org/topk.pdf "
        "Auxiliary data CIFAR-100, training split; TinyImages"
    )
    assert said in facts.pop("topk")
    assert not [name for name, text in facts.items() if "Submitted" in text or "License" in text]
    bare = submitted_with(board, paper=None, auxiliary=())
    text = Page(f"<p {cards_of(render(bare))[names.index('topk')]}").text
    assert "License MIT Setting" in text


def test_submitted_attacks_say_whose_they_are_and_what_they_lower(board: Board) -> None:
    section = render(board).partition('<section id="attacks">')[2].partition("</section>")[0]
    text = Page(section).text
    assert "storm Attack storm.py:Plugin Recoveries none Suite ci Needs auxiliary Submitted The idea of storm" in text
    assert "Ada Lovelace, Alan Turing, 2026-11-22 Code https://example.org/storm/tree/v1 License MIT Paper" in text
    assert "TinyImages LOWERED: storm steals 0.900 of topk:strength=0.1 (published 0.800)" in text
    assert 'id="attacks"' not in render(dataclasses.replace(board, submitted=board.submitted[:1]))
    fresh = Submitted(entry=board.submitted[1].entry, results=())
    assert "No setting was attacked with all seeds yet." in render(dataclasses.replace(board, submitted=(fresh,)))


def test_a_card_holds_its_flags_and_the_command_that_runs_its_worst_case_again(board: Board) -> None:
    for number, table in enumerate(board.tables):
        cards = [Page(f"<p {card}").text for card in cards_of(render(board), number)]
        placed = {place.row for tier in table.tiers for place in tier.placed}
        flagged = 0
        for i, row in enumerate(table.rows):
            for flag in row.flags:
                flagged += 1
                found = re.search(re.escape(flag) + r" \((.*?)\)", cards[row.defense])
                assert row.setting in found[1].split(", ")
            if i in placed:
                assert row.reproduce in cards[row.defense]
        assert flagged > 1
        for defense, card in enumerate(cards):
            mine = [row for row in table.rows if row.defense == defense]
            assert "The worst cases again: msbench run " in card
            assert ("answers depend on the batch" in card) == any(row.flags for row in mine)


def test_all_records_are_linked_from_a_list_that_every_card_leads_to(board: Board) -> None:
    html, listed = render(board), render_records([board], paths=factory.paths_of(board))
    for number, table in enumerate(board.tables):
        links = re.findall(rf'<a href="{RECORDS}#(t{number}-d\d+)">', html)
        assert links == [f"t{number}-d{defense}" for defense in range(len(table.defenses))]
        for defense in range(len(table.defenses)):
            body = listed.partition(f'<tbody id="t{number}-d{defense}">')[2].partition("</tbody>")[0]
            runs = [
                run
                for row in table.rows
                if row.defense == defense
                for score in row.scores
                for run in (score.run_ids if score else ())
            ]
            assert re.findall(r'<a href="records/digits/lenet5/[^"]*-(\w{12})\.json">', body) == runs
            assert len(runs) >= 3 * 4
    assert (Page(listed).text.count(" none "), "<script" in listed) == (2, False)


def test_what_is_flagged_is_marked_wherever_a_number_of_it_stands(board: Board) -> None:
    html, table = render(board), board.tables[0]
    flagged = {i for i, row in enumerate(table.rows) if row.flags}
    assert 0 < len(flagged) < len(table.rows) - 3
    for name in ("ranking", "heat"):
        part = re.findall(rf'<table class="sortable {name}".*?</table>', html, re.DOTALL)[0]
        lines = re.findall(r'<tr data-row="(\d+)".*?<th scope="row"><a[^>]*>(.*?)</a>', part)
        assert lines
        assert all(text == table.rows[int(i)].setting + MARK * (int(i) in flagged) for i, text in lines)
    names = [name for card in cards_of(html) for name in re.findall(r'<tr><th scope="row">(.*?)<td>', card)]
    assert names == [row.setting + MARK * bool(row.flags) for row in table.rows]
    tiers = re.findall(r'<table class="tiers".*?</table>', html, re.DOTALL)[0]
    marked = 0
    for line, defense in zip(tiers.split("<tr data-defense=")[1:], range(len(table.defenses)), strict=True):
        cells = [cell.strip() for cell in re.findall(r"<td>([^<]*)", line)]
        for cell, tier in zip(cells, sorted(table.tiers, key=lambda tier: (tier.drop, tier.l1)), strict=True):
            (row,) = [place.row for place in tier.placed if place.defense == defense]
            assert cell.endswith(MARK) == (row in flagged)
            marked += row in flagged
    assert marked
    for kind in ("drop", "l1"):
        chart = re.findall(rf'<svg [^>]*data-kind="{kind}".*?</svg>', html, re.DOTALL)[0]
        dots = re.findall(r'<circle( class="[^"]*")? data-row="(\d+)"', chart)
        assert {int(row) for classes, row in dots if "flagged" in classes} == flagged
    chart = re.findall(r'<svg [^>]*data-kind="defenses".*?</svg>', html, re.DOTALL)[0]
    lines = re.findall(r'<path class="line ([^"]*)" data-row="(\d+)"', chart)
    assert {int(row) for classes, row in lines if "flagged" in classes} == flagged & {int(row) for _, row in lines}
    assert Page(html).text.count(f"{MARK.strip()} flagged") == 3 * len(board.tables)
    assert f"Flagged{MARK}" in html


def cells_of(html: str, line: str) -> list[str]:
    """The texts of the cells of a table's line that begins so."""
    (found,) = re.findall(rf"<tr {re.escape(line)}[^>]*>(.*)", html)
    return [" ".join(Page(cell).text.split()) for cell in re.split("<t[dh][^>]*>", found)[1:]]


def test_the_attacks_are_judged_as_in_the_reports(board: Board) -> None:
    def lines(drop: float, l1: float) -> list[list[str]]:
        return next(grid.rows for grid in grids(sheets(board, drop, l1)) if "· attacks ·" in grid.title)

    html = render(board).partition("<h3>The attacks</h3>")[2].partition("<h3>The attacks</h3>")
    for number, (name, *judged, _, _, _, _, _, _) in enumerate(lines(*SHOWN_FIRST)):
        cells = cells_of(html[0], f'data-column="{number}"')
        assert (cells[0], *cells[5:7]) == (name.removesuffix(" *"), *judged)
        assert ("*" in name) == (cells[1] != "ranked") == (cells[6] == "\N{EN DASH}")
    tiers = json.loads(re.search(r'id="data">(.*?)</script>', html[2], re.DOTALL)[1])["tables"][0]["tiers"]
    for tier in tiers[::5]:
        assert tier["attacks"] == [line[1:3] for line in lines(tier["drop"], tier["l1"])]


def test_the_page_and_the_reports_say_in_the_same_words_how_ranks_are_made(board: Board) -> None:
    (note,) = {line for line in to_markdown(sheets(board)).splitlines() if line.startswith("- Rank: ")}
    said = note.removeprefix("- Rank: ").removesuffix(" Controls have none.")
    assert said == f"{RANK}."
    assert f"Ranks. Each class has its own: {said} Controls have none." in Page(render(board)).text


def test_all_that_tie_are_named_and_nobody_where_nothing_was_stolen(board: Board) -> None:
    table = board.tables[0]
    tier = next(tier for tier in table.tiers if (tier.drop, tier.l1) == SHOWN_FIRST)
    tied, safe = [one.row for one in tier.placed if one.rank][:2]
    rows = list(table.rows)
    rows[tied] = dataclasses.replace(rows[tied], worst_cases=(0, 1))
    html = render(factory.board_of(factory.without_worst_case(dataclasses.replace(table, rows=tuple(rows)), safe)))
    ranking, heat = (
        html.partition(f'class="sortable {name}"')[2].partition("</table>")[0] for name in ("ranking", "heat")
    )
    nothing = "\N{EN DASH}"
    assert cells_of(ranking, f'data-row="{tied}"')[3] == "dualstudent; dualstudent + argmax"
    assert cells_of(ranking, f'data-row="{safe}"')[2:5] == ["0.00 ± 0.00", nothing, nothing]
    lines = [re.findall(rf'<tr data-row="{row}"[^>]*>(.*)', heat)[0] for row in (tied, safe)]
    marked = [[" worst" in cell for cell in line.split("<td")[3:]] for line in lines]
    assert marked == [[True, True, False, False, False], [False] * 5]
    cards = html.partition("<h3>The defenses</h3>")[2]
    settings = {setting: rest for setting, rest in re.findall(r'<tr><th scope="row">(.*?)<td>(.*)', cards)}
    assert settings[rows[safe].setting].split("<td>")[1::5] == [nothing, nothing]
    linked = re.findall(r"-s0-(\w{12})\.json", settings[rows[tied].setting])
    assert linked == [run for column in (0, 1) for run in rows[tied].scores[column].run_ids]


def test_a_closed_gate_says_why_and_draws_no_front(board: Board) -> None:
    opened, shut = (factory.board_of(table) for table in board.tables)
    assert "Gate open" in render(opened) and 'class="front"' in render(opened)
    html = render(shut)
    assert "the baseline has no reference for it" in html
    assert "Gate closed" in html and 'class="front"' not in html


def test_what_is_missing_is_said_and_is_not_drawn(board: Board) -> None:
    table = board.tables[0]
    assert not table.rows[-1].complete
    last = len(table.rows) - 1
    assert all(last not in {dot.row for dot in chart.dots} for chart in scatters(table))
    assert all(len(chart.dots) == last for chart in scatters(table))
    assert (
        f"Incomplete, and therefore not placed: {table.rows[-1].setting} (1 of 5 attacks)." in Page(render(board)).text
    )
    assert last not in {line.key for line in defense_curves(table, range(last), range(last)).lines}


def test_an_empty_board_is_a_page(board: Board) -> None:
    table = board.tables[0]
    rows = [
        dataclasses.replace(
            row, scores=(None,) * len(row.scores), worst=None, worst_cases=(), complete=False,
            accuracy=None, drop=None, l1=None, shifted_drop=None, latency=None, flags=(),
        )
        for row in table.rows
    ]  # fmt: skip
    nothing = {"sigma": None, "queries_to_half": None, "seconds": None}
    tiers = [
        dataclasses.replace(
            tier,
            placed=tuple(dataclasses.replace(p, row=None, rank=None) for p in tier.placed),
            attacks=tuple(dataclasses.replace(line, **nothing) for line in tier.attacks),
        )
        for tier in table.tiers
    ]
    gate = tuple(dataclasses.replace(line, measured=None, holds=False) for line in table.gate)
    empty = dataclasses.replace(
        table, rows=tuple(rows), tiers=tuple(tiers), gate=gate,
        accuracy=None, runs_done=0, blockers=("runs are missing",),
    )  # fmt: skip
    page = Page(render(factory.board_of(empty)))
    assert "Not run yet" in page.text and "and 16 more" in page.text


def test_the_same_boards_make_the_same_bytes(board: Board) -> None:
    assert render(board) == render(board)


def test_a_thousand_settings_are_at_most_a_megabyte_and_a_half() -> None:
    names = tuple(f"defense_{i}" for i in range(250))
    big = factory.board_of(factory.make_table(names=names, settings=4))
    assert len(big.tables[0].rows) > 1000
    assert len(render(big).encode()) <= 1_500_000


# ------------------------------------------------------------------------------------------------------ figures


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    def beaten(point: tuple[int, int]) -> bool:
        return any(o != point and o[0] <= point[0] and o[1] >= point[1] for o in points)

    assert pareto(points) == sorted({point for point in points if not beaten(point)})


def test_marks_stand_where_their_numbers_say(board: Board) -> None:
    """Read back from the drawing: 286 is the bottom, 14 the top; costs stand at their square roots."""
    table = board.tables[0]
    drop, distance = scatters(table)
    least = min(0.0, *(1 - row.scores[row.worst].sigma.mean for row in table.rows if row.complete))
    for dot in distance.dots:
        row = table.rows[dot.row]
        resistance = least + (286 - dot.y) / 272 * (1 - least)
        assert resistance == pytest.approx(1 - row.scores[row.worst].sigma.mean, abs=0.001)
        cap = next(cap for cap in distance.caps if cap.value == L1_CAPS[-1])
        assert ((dot.x - 46) / (cap.at - 46)) ** 2 == pytest.approx(row.l1, abs=0.002)
        assert dot.within == (row.shifted_drop <= SHOWN_FIRST[0] and row.shifted_l1 <= SHOWN_FIRST[1])
    assert [cap.value for cap in drop.caps if cap.shown] == [SHOWN_FIRST[0]]
    assert [cap.value for cap in distance.caps if cap.shown] == [SHOWN_FIRST[1]]


def test_curves_go_through_their_milestones(board: Board) -> None:
    table = board.tables[0]
    for line in attack_curves(table).lines:
        score = table.rows[0].scores[line.key]
        assert line.readings.split() == [f"{queries}:{100 * accuracy:.1f}" for queries, accuracy in score.curve]
        heights = [float(pair.split(",")[1]) for pair in line.path[1:].split("L")]
        assert [(286 - y) / 272 for y in heights] == pytest.approx([accuracy for _, accuracy in score.curve], abs=0.001)
        low, high = zip(*score.band, strict=True)
        edges = [(286 - float(pair.split(",")[1])) / 272 for pair in line.band[1:-1].split("L")]
        assert edges == pytest.approx([*low, *high[::-1]], abs=0.001)
    heights = sorted(line.label_y for line in attack_curves(table).lines)
    assert all(after - before >= 13.9 for before, after in pairwise(heights))
