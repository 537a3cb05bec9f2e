"""One table of texts in four forms: for a terminal, a file, Markdown and LaTeX.

For a terminal, columns that find no room beside the others follow below with the names repeated, as pandas does it:
a column is as wide as its numbers, so that none is cut in two however many there are, and only names are folded.
"""

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from .texts import escape_latex, escape_markdown, visible

_BOLD = Style(bold=True)
_BETWEEN = "  "
"""What stands between columns, and before the further lines of a name."""
_PIECES = re.compile(r"[+ ]?[^+ ,:]*[,:]*")
"""What a text is folded into: words, the terms of a sum and parameters."""
_NAME, _NUMBER = 24, 12
"""Names have a third of the screen, other columns what is left, but no less; narrower screens cut lines off."""


@dataclass(frozen=True)
class Grid:
    """One table as text."""

    title: str
    header: list[str]
    rows: list[list[str]]
    worst: list[tuple[int, ...]]
    """For each row, the positions of its worst cases."""
    notes: list[str]

    def visible(self) -> list[list[str]]:
        """The header and the rows as a terminal may see them."""
        return [list(map(visible, line)) for line in (self.header, *self.rows)]


# --------------------------------------------------------------------------------------------------- a terminal


def rich_section(grid: Grid) -> RenderableType:
    """A grid for a terminal, worst cases in bold."""
    notes = (Text(visible(note), style="dim") for note in grid.notes)
    return Group(Text(visible(grid.title), style="bold"), Text(), _Blocks(grid), *notes)


@dataclass(frozen=True)
class _Blocks:
    """The table itself, as many columns beside each other as the screen has room for."""

    grid: Grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        screen = options.max_width
        lines = self.grid.visible()
        strong = [range(len(self.grid.header)), *self.grid.worst]
        widths = _widths(lines, screen)
        for block in _blocks(widths, screen):
            rule = Segment("─" * _total(widths, block))
            head, *rows = (_row(line, widths, block, bold) for line, bold in zip(lines, strong, strict=True))
            yield from chain(head, (rule, Segment.line()), *rows, (Segment.line(),))


def _widths(lines: Sequence[Sequence[str]], screen: int) -> list[int]:
    """Room for the texts of each column, and for its heading if that is folded."""
    widths: list[int] = []
    for heading, *texts in zip(*lines, strict=True):
        most = max(screen - widths[0] - len(_BETWEEN), _NUMBER) if widths else max(screen // 3, _NAME)
        widths.append(min(most, max(map(cell_len, (*map(str.strip, _PIECES.findall(heading)), *texts)))))
    return widths


def _total(widths: Sequence[int], block: Sequence[int]) -> int:
    return sum(widths[i] for i in block) + len(_BETWEEN) * (len(block) - 1)


def _blocks(widths: Sequence[int], screen: int) -> Iterator[list[int]]:
    """Positions of the columns that fit beside each other; names, the first column, lead each block."""
    block = [0]
    for i in range(1, len(widths)):
        if len(block) > 1 and _total(widths, [*block, i]) > screen:
            yield block
            block = [0]
        block.append(i)
    yield block


def _row(line: Sequence[str], widths: Sequence[int], block: Sequence[int], bold: Container[int]) -> Iterator[Segment]:
    """A row of a block, in as many lines as its longest text is folded into."""
    columns = [_folded(line[i], widths[i], "" if i else _BETWEEN) for i in block]
    for texts in zip_longest(*columns, fillvalue=""):
        for i, text in zip(block, _aligned(texts, [widths[i] for i in block]), strict=True):
            yield Segment(text, _BOLD if i in bold else None)
        yield Segment.line()


def _folded(text: str, width: int, indent: str) -> list[str]:
    """The text in lines of at most so many cells, broken between its pieces where that is possible."""
    if cell_len(text) <= width:
        return [text]
    lines = [""]
    for piece in _PIECES.findall(text):
        if cell_len(lines[-1] + piece) <= width:
            lines[-1] += piece
        else:
            lines += chop_cells((indent if lines[-1] else "") + piece.strip(), width)
    return list(filter(str.strip, lines))


def _aligned(texts: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """The first to the left, the others to the right and apart."""
    for i, (text, width) in enumerate(zip(texts, widths, strict=True)):
        space = " " * (width - cell_len(text))
        yield _BETWEEN + space + text if i else text + space


# ------------------------------------------------------------------------------------------------------ a file


def text_section(grid: Grid) -> str:
    """A grid as plain text: columns are aligned, and as wide as they need to be."""
    head, *rows = grid.visible()
    widths = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["─" * width for width in widths]
    table = ("".join(_aligned(line, widths)).rstrip() for line in (head, rule, *rows))
    return "\n".join([visible(grid.title), "", *table, "", *map(visible, grid.notes)]) + "\n"


def markdown_section(grid: Grid) -> str:
    """A grid as a section of Markdown; names in it mean themselves, whatever is in them."""
    lines = [list(map(escape_markdown, grid.header)), ["---", *["---:"] * (len(grid.header) - 1)]]
    for row, worst in zip(grid.rows, grid.worst, strict=True):
        texts = map(escape_markdown, row)
        lines.append([f"**{text}**" if i in worst else text for i, text in enumerate(texts)])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = "\n".join(f"- {escape_markdown(note)}" for note in grid.notes)
    return "\n\n".join(filter(None, (f"### {escape_markdown(grid.title)}", table, notes))) + "\n"


def latex_section(grid: Grid) -> str:
    """A grid as a table in the style of booktabs, which the document must load."""
    lines = [" & ".join(map(escape_latex, grid.header))]
    for row, worst in zip(grid.rows, grid.worst, strict=True):
        texts = map(escape_latex, row)
        lines.append(" & ".join(rf"\textbf{{{text}}}" if i in worst else text for i, text in enumerate(texts)))
    head, *body = (rf"{line} \\" for line in lines)
    parts = [
        r"\begin{table}",
        rf"\caption{{{escape_latex(grid.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(grid.header) - 1)}}}",
        *(r"\toprule", head, r"\midrule", *body, r"\bottomrule"),
        r"\end{tabular}",
        *(rf"\par\footnotesize {escape_latex(note)}" for note in grid.notes),
        r"\end{table}",
    ]
    return "\n".join(parts) + "\n"
