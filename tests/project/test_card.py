"""The command for a card works without a card, and with only the packages of a GPU node."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import pytest
from factories import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
engine = importlib.import_module("card.engine")
report = importlib.import_module("card.report")
command = importlib.import_module("card.__main__")
roofline = importlib.import_module("roofline")

MISSING = (
    "datasets", "pandas", "scipy", "sklearn", "plotly", "ipywidgets", "anywidget", "matplotlib", "PIL", "jaxtyping",
    "lazy_loader", "platformdirs", "nbval", "nbformat", "hypothesis",
)  # fmt: skip
BLOCK = f"""
import sys

class Hide:
    # finds what a finder finds, except these packages: transformers asks for them, so raising would not do
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {MISSING!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hide, sys.meta_path)
"""


def run_python(code, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_package_trains_with_only_what_a_gpu_node_has(tmp_path):
    done = run_python(
        "import nlora_lab as nl\n"
        "quick = dict(steps=2, batch_size=2, train_rows=16, test_rows=2)\n"
        "run = nl.fine_tune(nl.RunConfig(method='nlora', **quick))\n"
        "raced = nl.race([nl.RunConfig(method=m, **quick) for m in ('lora', 'nlora')])\n"
        "rows = type(nl.load_task().train).__name__\n"
        "print(len(run.steps), run.metrics['accuracy'], [r.together for r in raced], rows)",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "2"
    assert done.stdout.strip().endswith("[2, 2] RowTable")


def test_the_tiny_command_measures_every_part_on_a_gpu_node(tmp_path):
    arguments = ["card", "--device", "cpu", "--tiny", "--minutes", "20", "--out", str(tmp_path)]
    code = f"import runpy\nsys.argv = {arguments!r}\nrunpy.run_module('benchmarks.card', run_name='__main__')"
    done = run_python(code, ROOT)
    assert done.returncode == 0, done.stderr
    parts = {part.name: engine.read_part(tmp_path, part.name) for part in command.PARTS}
    assert all(parts.values())
    rows = {(part, name): row for part, cases in parts.items() for name, row in cases.items()}
    missing = {case for case, row in rows.items() if row["status"] != "measured"}
    assert {case: row for case, row in rows.items() if row["status"] == "failed"} == {}
    assert missing == {("steps", "nlora, flash attention"), ("starts", "eva"), ("scan", "all")}
    assert done.stdout.startswith("# What a card shows")
    assert "No module named 'pandas'" in done.stdout


@pytest.fixture
def context(tmp_path):
    return engine.Context("cpu", None, tmp_path)


def part_of(cases, seconds=0.0):
    return engine.Part("x", "a part", lambda context: cases, seconds)


def refuse():
    raise ValueError("broken")


def kill():
    os._exit(3)


def test_a_case_that_fails_leaves_the_others_and_only_it_is_measured_again(context, tmp_path):
    calls = []
    good = lambda: calls.append(1) or {"figure": 1}  # noqa: E731
    engine.run_part(part_of({"bad": refuse, "good": good}), context, float("inf"))
    assert engine.read_part(tmp_path, "x")["bad"]["error"] == "ValueError: broken"
    engine.run_part(part_of({"bad": lambda: {"figure": 2}, "good": good}), context, float("inf"))
    rows = engine.read_part(tmp_path, "x")
    assert [rows[name]["figure"] for name in ("bad", "good")] == [2, 1]
    assert calls == [1]


def test_what_does_not_fit_into_the_time_is_not_started(context, tmp_path):
    engine.run_parts([part_of({"long": refuse}, seconds=3600)], context, 1, print)
    assert engine.read_part(tmp_path, "x") == {"long": {"status": "not measured", "why": "no time left"}}


def test_a_process_that_dies_leaves_the_next_part_alone(context, tmp_path):
    other = engine.Part("y", "another", lambda context: {"good": lambda: {"figure": 1}}, 0)
    engine.run_parts([part_of({"dies": kill}), other], context, 1, print)
    assert "exit code 3" in engine.read_part(tmp_path, "x")["dies"]["error"]
    assert engine.read_part(tmp_path, "y")["good"]["figure"] == 1


def test_the_report_is_made_from_the_records():
    text = (ROOT / "benchmarks" / "card.md").read_text(encoding="utf-8")
    assert text == report.report(ROOT / "benchmarks" / "results" / "card", command.PARTS)


def test_the_roofline_document_shows_the_record():
    text = (ROOT / "benchmarks" / "roofline.md").read_text(encoding="utf-8")
    for table in roofline.tables(json.loads(roofline.RECORD.read_text(encoding="utf-8"))).values():
        assert table in text


def test_work_is_counted_in_launches_operations_bytes_and_waits():
    import torch

    a, b = torch.ones(8, 16), torch.ones(16, 4)
    with roofline.CountWork() as counter:
        c = (a @ b).T * 2.0
        float(c.sum())
    work = counter.work
    assert (work.launches, work.syncs) == (3, 1)  # the product, the doubling, the sum; a view launches nothing
    assert work.flops == 2 * 8 * 16 * 4
    assert work.bytes == 4 * (32 + 32 + 32 + 1)


@pytest.mark.parametrize(
    ("work", "bottleneck", "seconds"),
    [
        (roofline.Work(launches=1, flops=1e12), "operations", 1.0),
        (roofline.Work(launches=1, bytes=1e11), "memory", 1.0),
        (roofline.Work(launches=1000), "launches", 1000 * roofline.LAUNCH),
    ],
)
def test_the_bottleneck_is_what_takes_longest(work, bottleneck, seconds):
    assert work.seconds(1e12, 1e11) == (pytest.approx(seconds), bottleneck)


def test_a_step_takes_the_operations_of_the_estimate_and_deeper_models_more():
    shapes = {**roofline.LLAMA_1B, "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
              "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    two, four = (roofline.step_work("lora", {**shapes, "num_hidden_layers": n}, 2, 8) for n in (2, 4))
    one = roofline.step_work("lora", {**shapes, "num_hidden_layers": 1}, 2, 8)
    assert four.launches - two.launches == 2 * (two.launches - one.launches)
    assert four.flops - two.flops == pytest.approx(2 * (two.flops - one.flops))


def test_the_floor_of_a_start():
    assert roofline.start_floor(100, 50, 4, reads_all=True) == 2 * 5000
    assert roofline.start_floor(100, 50, 4, reads_all=False) == 2 * 4 * 150
