"""An evaluation says how far it is, to whom asks."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import pytest

from nlora_lab.core.progress import StageProgress
from nlora_lab.evaluation.progress import report, report_to, reported
from nlora_lab.evaluation.scoring import answers, measure
from nlora_lab.tasks.registry import load_task


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("name", "parts"), [("word-problems", 5), ("entailment", 1)])
def test_every_token_counts_and_the_end_is_reached(embedded, name, parts):
    heard = []
    task = load_task(name, test_rows=3)
    with report_to(lambda *values: heard.append(values)):
        answers(*embedded, task, max_new_tokens=parts if parts > 1 else None)
    texts, done, totals = zip(*heard, strict=True)
    assert set(texts) == {"answering test items"}
    assert set(totals) == {3 * parts}
    assert list(done) == sorted(done)
    assert (done[0], done[-1]) == (0, 3 * parts)
    assert len(set(done)) > parts


def test_without_a_listener_nothing_is_reported_and_the_answers_are_the_same(embedded, capsys):
    task = load_task("word-problems", test_rows=2)
    heard = []
    with report_to(lambda *values: heard.append(values)):
        loud = measure(*embedded, task)
    count = len(heard)
    report("nobody hears this", 1, 2)
    assert measure(*embedded, task) == loud
    assert len(heard) == count > 0
    assert capsys.readouterr() == ("", "")


def test_batches_are_counted_by_their_rows():
    heard = []
    batches = [{"input_ids": [1, 2]}, {"input_ids": [3]}]
    with report_to(lambda *values: heard.append(values)):
        assert list(reported(batches, "loss", 3)) == batches
    assert heard == [("loss", 0, 3), ("loss", 2, 3), ("loss", 3, 3)]


def test_the_line_begins_anew_with_each_stage_and_is_gone_at_the_end():
    screen = Terminal()
    line = StageProgress(screen)
    for text in ("answering", "loss"):
        for done in range(5):
            time.sleep(0.12)  # it is written ten times a second
            line(text, done, 4)
    assert "answering  25 %" in screen.getvalue()
    assert "loss  25 %" in screen.getvalue()
    assert "left" in screen.getvalue()
    assert screen.getvalue().endswith("\r")
    assert screen.getvalue().rstrip("\r").rpartition("\r")[2].isspace()


def test_a_short_stage_is_not_in_a_log_and_a_long_one_is():
    for quiet, lines in ((10.0, 0), (0.0, 4)):
        log = io.StringIO()
        line = StageProgress(log, quiet)
        for done in range(5):
            line("answering", done, 4)
            line("answering", min(done, 1), 4) if done < 4 else None  # a batch that is done again in halves
        assert log.getvalue().count("answering") == lines


def test_a_run_reports_its_answers_and_both_losses():
    from nlora_lab.runs.config import RunConfig
    from nlora_lab.training.races import race

    heard, runs = [], [RunConfig(steps=1, batch_size=2, test_rows=2)]
    runs.append(replace(runs[0], seed=1))
    for configs in (runs[:1], runs):
        heard.clear()
        with report_to(lambda text, done, total: heard.append((text, done == total))):
            race(configs)
        stages = [text for text, is_last in heard if is_last]
        assert stages == ["answering test items", "measuring validation loss", "measuring test loss"] * len(configs)
