"""What is seen of a run while it goes on."""

import io

import pytest
from msbench.benchmark.cli import display
from msbench.leaderboard.record import CurvePoint
from rich.console import Console

POINT = CurvePoint(queries=30_016, clone_accuracy=0.912, agreement=0.918, defended_accuracy=0.98)


def go(listener):
    """Tell a listener what a short run tells."""
    listener.phase("training target digits/lenet5")
    for epoch in range(1, 41):
        listener.training(epoch, 40, 0.5)
    listener.phase("attacking")
    listener.progress(30_016, 60_000, {"loss": 1.0})
    listener.milestone(POINT)
    listener.warning("answers are [odd]")


def test_plain_lines(capsys):
    with display.listening(60_000, quiet=False, live=True) as listener:
        go(listener)
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert "spent 30,016/60,000  accuracy 91.2 %  agreement 91.8 %" in lines
    assert lines[0] == "training target digits/lenet5"
    assert lines[-1] == "warning: answers are [odd]"
    assert sum(line.startswith("epoch") for line in lines) == 10


def test_quiet_shows_warnings_only(capsys):
    with display.listening(60_000, quiet=True, live=True) as listener:
        go(listener)
    assert capsys.readouterr() == ("", "warning: answers are [odd]\n")


def test_live_line_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr", screen)
    with display.listening(60_000, quiet=False, live=True) as listener:
        assert isinstance(listener, display.RichListener)
        go(listener)
        listener.bar.refresh()
    assert "30,016/60,000 queries" in screen.getvalue()
    assert "agreement 91.8 %" in screen.getvalue()


def test_no_progress_means_plain_lines_on_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with display.listening(60_000, quiet=False, live=False) as listener:
        assert isinstance(listener, display.PlainListener)


@pytest.mark.parametrize(("value", "text"), [(None, "-"), ("", "-"), ((), "-"), (0.98765, "0.9877"), ((1, 8), "1, 8")])
def test_table_cells(value, text):
    written = io.StringIO()
    console = Console(file=written, width=80)
    console.print(display.table(["x"], [[value]]))
    assert written.getvalue().splitlines()[1].strip() == text
