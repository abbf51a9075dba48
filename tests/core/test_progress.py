"""The progress line: in a terminal, in a log, and with nobody to read it."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from nlora_lab.core.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Gone(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


def test_a_log_gets_lines_with_the_share_and_the_time_left():
    log = io.StringIO()
    line = ProgressLine(4, log, quiet=0)
    line.advance("one")
    line.skip(2)
    line.advance("two")
    line.close()
    assert log.getvalue() == "one  25 %  00:00 left\ntwo  100 %  00:00 left\n"


def test_a_log_gets_few_lines_and_always_the_last():
    log = io.StringIO()
    line = ProgressLine(50, log)
    for step in range(50):
        line.advance(f"step {step + 1}")
    assert log.getvalue() == "step 50  100 %  00:00 left\n"


def test_in_a_terminal_the_line_rewrites_itself():
    screen = Terminal()
    line = ProgressLine(2, screen)
    line.advance("done", by=2)
    line.say("a line that stays")
    assert "\n" not in screen.getvalue().partition("a line")[0]
    assert screen.getvalue().endswith("\ra line that stays\n")
    line.close()
    del line
    assert screen.getvalue().strip("\r ").endswith("a line that stays\n")


def test_two_lines_do_not_move_the_cursor_for_each_other():
    screens = Terminal(), Terminal()
    lines = [ProgressLine(2, screen) for screen in screens]
    for line in lines:
        line.advance("done", by=2)
        line.close()
    assert not any("\x1b" in screen.getvalue() or "\n" in screen.getvalue() for screen in screens)


@pytest.mark.parametrize("stream", [Gone(), None])
def test_progress_that_nobody_reads_never_ends_a_run(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    line = ProgressLine(2, stream, quiet=0)
    line.say("hello")
    line.advance("one")
    line.advance("two")
    line.close()


def test_silent_means_nothing_is_written(capsys):
    line = ProgressLine(1, silent=True)
    line.say("hello")
    line.advance("one")
    line.close()
    assert capsys.readouterr() == ("", "")


def test_no_thread_is_started():
    before = threading.active_count()
    ProgressLine(1, io.StringIO()).advance("one")
    assert threading.active_count() == before
