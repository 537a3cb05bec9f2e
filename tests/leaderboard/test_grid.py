import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msbench.leaderboard.grid import Grid, rich_section, text_section
from rich.cells import cell_len
from rich.console import Console

LONG = "seat:action=refuse,epochs=10,epsilon=0.03,false_positives=0.1,memory=10000"
NAMES = ["topk:k=3", LONG, "防御" * 20, "x" * 90]
HEADER = ["defense", "dfme", "random_noise+averaging (6)", *(f"attack{i}" for i in range(9)), "worst case"]


def grid_of(names=NAMES, header=HEADER, worst=()):
    rows = [[name, *(f"{i}.{j} ± 0.{i}{j}" for j in range(1, len(header)))] for i, name in enumerate(names)]
    return Grid("a title", header, rows, [worst] * len(names), ["a note"])


def printed(grid, width, **options):
    page = io.StringIO()
    Console(file=page, width=width, **options).print(rich_section(grid))
    return page.getvalue()


def blocks_of(text):
    """The lines above and below the rule of each block."""
    title, blank, *lines, note = text.splitlines()
    assert (title, blank, note) == ("a title", "", "a note")
    for block in "\n".join(lines).strip("\n").split("\n\n"):
        head, body = re.split("\n─+\n", block)
        yield head.splitlines(), body.splitlines()


@pytest.mark.parametrize("width", [42, 60, 80, 160, 1000])
def test_on_any_screen_numbers_are_whole_and_in_the_first_line_of_their_name(width):
    grid = grid_of()
    text = printed(grid, width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    blocks = list(blocks_of(text))
    numbered = [[line for line in body if "±" in line] for _, body in blocks]
    for row, *lines in zip(grid.rows, *numbered, strict=True):
        assert [number for line in lines for number in re.findall(r"\d\.\d+ ± \d\.\d+", line)] == row[1:]
        assert all(row[0].startswith(line.split()[0]) for line in lines)
    assert (len(blocks) == 1) == (width == 1000)


@pytest.mark.parametrize("width", [42, 80, 160])
@pytest.mark.parametrize("name", NAMES)
def test_a_folded_name_is_all_there(name, width):
    for _, body in blocks_of(printed(grid_of([name]), width)):
        first, *further = body
        assert "".join([first.split("  ")[0], *map(str.strip, further)]) == name


def test_a_name_is_folded_between_its_parameters_and_a_heading_between_its_terms():
    ((head, body),) = blocks_of(printed(grid_of([LONG], ["defense", HEADER[2]]), 80))
    assert [line.split("  ")[-1].strip() for line in head] == ["random_noise", "+averaging", "(6)"]
    assert body[0].startswith("seat:action=refuse,  ")
    further = ["  epochs=10,epsilon=0.03,", "  false_positives=0.1,", "  memory=10000"]
    assert [line.rstrip() for line in body[1:]] == further


def test_the_title_headings_and_worst_cases_are_bold():
    text = printed(grid_of(["topk:k=3"], HEADER[:3], worst=(2,)), 200, force_terminal=True, color_system="standard")
    bold = [part.strip() for part in re.findall(r"\x1b\[1m(.*?)\x1b\[0m", text)]
    assert list(filter(None, bold)) == [
        *("a title", "defense", "dfme", "random_noise", "+averaging", "(6)"),
        "0.2 ± 0.02",
    ]


@given(st.lists(st.lists(st.text(max_size=50), min_size=4, max_size=4), min_size=1, max_size=4), st.integers(40, 200))
def test_whatever_the_texts_no_line_is_longer_than_the_screen(lines, width):
    header, *rows = lines
    grid = Grid("a title", header, rows, [()] * len(rows), ["a note"])
    assert all(cell_len(line) <= width for line in printed(grid, width).splitlines())
    assert len(text_section(grid).splitlines()) == 6 + len(rows)
