"""Texts of others: what they may hold, and how to show them so that they mean themselves and nothing else.

Entries and records come from anybody. A terminal, a browser, GitHub and LaTeX each obey some signs; the page's
templates escape what they show by themselves.
"""

import re
import unicodedata

SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
"""The stolen share, in a table's head."""
MISSING = "\N{EN DASH}"
"""What stands where there is nothing."""
FLAGGED = "\N{DAGGER}"
"""What stands behind the name of a setting that something is flagged of, or behind a number of it that stands alone."""


def marked(text: str, flagged: object) -> str:
    """The text, with the mark behind it if something is flagged."""
    return f"{text} {FLAGGED}" if flagged else text


def is_printable(text: str) -> bool:
    """Whether there are no line breaks, no escapes and no marks that change the direction of what follows."""
    return text.isprintable() or not any(map(_is_command, text))


def visible(text: str) -> str:
    """The text with an escape sequence for each sign that would be obeyed and not shown."""
    return text if is_printable(text) else "".join(ascii(sign)[1:-1] if _is_command(sign) else sign for sign in text)


def _is_command(sign: str) -> bool:
    return unicodedata.category(sign).startswith(("C", "Zl", "Zp"))


_MARKDOWN = re.compile(
    r"""
    [\\|`*<>\[\]&~$]
    | (?<![^\W_])_ | _(?![^\W_])  # an underscore inside a word has no meaning
    | :(?=//) | (?<=www)\.        # GitHub makes links of addresses; of those of mail, whatever is done
    """,
    re.VERBOSE,
)


def escape_markdown(text: str) -> str:
    """Text that means itself to Markdown as GitHub reads it, also in a table."""
    return visible(_MARKDOWN.sub(r"\\\g<0>", " ".join(text.split())))


_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{sign: f"{{{sign}}}" for sign in "[]*"},  # after the end of a row they would be its argument
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "·": r"$\cdot$",
    "…": r"\dots{}",
    SIGMA: r"$\sigma$",
    MISSING: "--",
    FLAGGED: r"$\dagger$",
}


def escape_latex(text: str) -> str:
    """Text that means itself to LaTeX, whatever is in it."""
    return "".join(_LATEX.get(sign, sign) for sign in visible(text.replace("\n", " ")))
