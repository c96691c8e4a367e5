"""A progress bar in a log file is a plain line now and then."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from lgpl import progress
from lgpl.progress import Bar


def test_lines_in_a_log_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    log = io.StringIO()
    for _ in Bar(range(100), desc="x", unit="image", file=log, mininterval=0, miniters=1):
        pass
    bar = Bar(total=10, unit="image", file=log, mininterval=0)
    bar.update(3)
    Bar.write("an error", file=log)
    bar.close()
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue() and lines[0] == "x: 10% of 100 images"
    assert 9 <= len(lines) - 2 <= 10
    assert lines[-2:] == ["30% of 10 images", "an error"]


def test_whoever_reads_the_output_may_stop() -> None:
    """As in `lgpl configs | head -1`."""
    command = [sys.executable, "-m", "lgpl", "configs"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    assert (process.communicate()[1], process.returncode) == ("", 141)


def test_what_is_done_in_a_moment_needs_no_line() -> None:
    log = io.StringIO()
    for _ in Bar(range(10), desc="x", file=log, mininterval=0, miniters=1):
        pass
    assert log.getvalue() == ""
