"""Texts of others mean themselves wherever they are shown."""

import pytest
from msbench.leaderboard.texts import escape_latex, escape_markdown, is_printable, visible

ODD = r"a|b<i>*_`[x](y)`_*&%$#{}~^\x"


@pytest.mark.parametrize("sign", ["\n", "\x1b", "\x07", "\x9b", "\u2028", "\u202e", "\u200b", "\ufeff"])
def test_what_a_terminal_would_obey_is_seen_instead(sign: str) -> None:
    assert not is_printable(f"a{sign}b")
    assert visible(f"a{sign}b") == f"a{ascii(sign)[1:-1]}b"
    assert is_printable(visible(f"a{sign}b"))


def test_what_can_be_read_stays_as_it_is() -> None:
    text = "Zoë: 防御, ≥ 0.5 … [bold]"
    assert is_printable(text)
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        (ODD, r"a\|b\<i\>\*\_\`\[x\](y)\`\_\*\&%\$#{}\~^\\x"),
        ("label_only", "label_only"),
        ("www.example.org", r"www\.example.org"),
        ("_label_", r"\_label\_"),
        ("__init__", r"\_\_init\_\_"),
        ("$x$ at https://example.org/_a", r"\$x\$ at https\://example.org/\_a"),
        ("two\n lines \x1b[31m", r"two lines \x1b\[31m"),
    ],
)
def test_markdown(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        (
            ODD,
            r"a\textbar{}b\textless{}i\textgreater{}{*}\_`{[}x{]}(y)`\_{*}\&\%\$\#\{\}\textasciitilde{}"
            r"\textasciicircum{}\textbackslash{}x",
        ),
        ("[2cm]x", "{[}2cm{]}x"),  # behind the end of a row it would be a distance
        ("*", "{*}"),
        ("a\x1bb\nc", r"a\textbackslash{}x1bb c"),
    ],
)
def test_latex(text: str, escaped: str) -> None:
    assert escape_latex(text) == escaped
