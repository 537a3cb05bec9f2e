"""What signals do to the process that they come to."""

import io
import os
import signal
import sys

import pytest
from msbench.benchmark.cli.execute import stopping

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")


class Interrupting(io.RawIOBase):
    """A stream that is interrupted while it writes, its buffer being locked."""

    def writable(self):
        return True

    def write(self, text):
        signal.raise_signal(signal.SIGTERM)
        return len(text)


def test_a_signal_amid_a_line_of_stderr_stops_and_is_no_error(monkeypatch, capfd):
    stderr = io.TextIOWrapper(io.BufferedWriter(Interrupting()), encoding="utf-8", line_buffering=True)
    monkeypatch.setattr(sys, "stderr", stderr)
    with stopping() as stop:
        print("spent 1/2", file=sys.stderr)
        assert stop.is_set()
    monkeypatch.undo()
    assert capfd.readouterr().err == "stopping after this step; once more to stop at once\n"
