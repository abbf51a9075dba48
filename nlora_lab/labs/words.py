"""What the lab says in words, as HTML that follows the page's theme: numbers at the slider, answers, comparisons."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from nlora_lab.core.formatting import format_rate
from nlora_lab.labs.entries import Entry, swatch
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.index import RatePoint, Spread
from nlora_lab.runs.run import STEP0_NOISE, Run
from nlora_lab.runs.shipped import BaseAnswers

CELL = 'style="padding:2px 12px 2px 0;text-align:right;white-space:nowrap"'
WORDS = 'style="padding:2px 12px 2px 0;text-align:left;white-space:nowrap"'
RIGHT, WRONG = "✓", "✗"


def error(text: str) -> str:
    """Something that went wrong, in a colour that shows on white and on dark."""
    return f'<span style="color:#d62728;font-weight:bold">{html.escape(text)}</span>'


def rows(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A plain table; the first column is set left, cells are HTML already."""
    first = "".join(f"<th {WORDS if i == 0 else CELL}>{h}</th>" for i, h in enumerate(head))
    lines = ("".join(f"<td {WORDS if i == 0 else CELL}>{c}</td>" for i, c in enumerate(row)) for row in body)
    return (
        f'<div style="overflow-x:auto"><table style="border-collapse:collapse;line-height:1.4"><tr>{first}</tr>'
        + "".join(f"<tr>{line}</tr>" for line in lines)
        + "</table></div>"
    )


def spread(value: Spread, scale: float = 1.0, form: str = ".3f", unit: str = "") -> str:
    """``0.058 (0.054–0.177)``: median and range; one number where they are the same."""
    if math.isnan(value.middle):
        return "–"
    if math.isinf(value.middle):
        return "diverged"
    low, middle, high = (v * scale for v in (value.low, value.middle, value.high))
    top = "∞" if math.isinf(high) else f"{high:{form}}"
    return f"{middle:{form}}{unit}" + (f" ({low:{form}}–{top})" if value.low != value.high else "")


def at_the_slider(shown: Sequence[tuple[str, str, RatePoint | None]], bests: Sequence[RatePoint | None]) -> str:
    """A row for each ticked method (name, label, recorded point): what it reached at this rate, and its own best."""
    head = ("recorded", "parameters", "rate", "final loss", "accuracy", "seeds", "its best rate", "accuracy there")
    body = []
    for (method, label, point), best in zip(shown, bests, strict=True):
        own = ("–", "–") if best is None else (format_rate(best.lr), spread(best.accuracy, 100, ".1f", " %"))
        name = f"{swatch(method)} {html.escape(label)}"
        if point is None:
            body.append((name, "–", "not recorded: press Run", "–", "–", "–", *own))
            continue
        trained = f"{point.runs[0].trainable:,}"
        reached = spread(point.loss), spread(point.accuracy, 100, ".1f", " %")
        body.append((name, trained, format_rate(point.lr), *reached, str(len(point.runs)), *own))
    return rows(head, body) if body else "Tick a method."


def answers(
    items: Sequence[dict[str, str]], before: BaseAnswers | None, recorded: Sequence[tuple[str, RatePoint | None]],
    live: Sequence[Entry],
) -> str:  # fmt: skip
    """A few test items, what the model said to them untouched, and what each shown run says."""
    blocks = []
    for i, item in enumerate(items):
        lines: list[tuple[str, str, str | None]] = []
        if before and i < len(before.answers):
            lines.append(("before tuning", before.answers[i], None))
        for label, point in recorded:
            if point and i < len(point.runs[0].answers):
                lines.append((f"{label}, recorded", point.runs[0].answers[i], point.runs[0].config.method))
        lines += [(e.name, e.run.answers[i], e.run.config.method) for e in live if i < len(e.run.answers)]
        told = "".join(_said(who, said, item, method) for who, said, method in lines)
        blocks.append(
            f'<div style="margin:4px 0 10px 0;line-height:1.45"><b>{html.escape(item["prompt"])}</b> '
            f'<span style="opacity:.75">(right: {html.escape(item["answer"])})</span>{told}</div>'
        )
    return "".join(blocks)


def _said(who: str, said: str, item: dict[str, str], method: str | None) -> str:
    mark = RIGHT if is_right(said, item) else WRONG
    look = swatch(method) if method else '<span style="white-space:pre">··</span>'
    return (
        f'<div style="padding-left:1em">{look} <span style="opacity:.75">{html.escape(who)}:</span> '
        f"{html.escape(said.strip())} <b>{mark}</b></div>"
    )


def is_right(said: str, item: dict[str, str]) -> bool:
    """Whether an answer is the item's: the final number, or the word."""
    from nlora_lab.evaluation.scoring import final_number

    return item["answer"] in (final_number(said), said.strip())


def comparison(entries: Sequence[Entry]) -> str:
    """Runs side by side: only the settings in which they differ, then what they reached."""
    if len(entries) < 2:
        return "Tick two or more runs on the left of their rows to compare them here."
    runs = [e.run for e in entries]
    asked = ("method", "rank", "alpha", "init", "lr", "steps", "task", "seed")
    differ = [name for name in asked if len({getattr(r.config, name) for r in runs}) > 1]
    lines = [(name, *(html.escape(_told(getattr(r.config, name))) for r in runs)) for name in differ]
    reached = {
        "parameters": [f"{r.trainable:,}" for r in runs],
        "final loss": [_number(r.final_loss, ".4f") for r in runs],
        "validation loss": [_number(r.metrics.get("validation_loss", math.nan), ".4f") for r in runs],
        "accuracy": [_number(100 * r.accuracy, ".1f", " %") for r in runs],
        "change of the model at step 0": [_number(r.metrics.get("step0_change", math.nan), ".2g") for r in runs],
        "‖change of W‖ / ‖W‖": [_number(r.metrics.get("distance", math.nan), ".3f") for r in runs],
        "seconds": [f"{r.seconds:.0f}" for r in runs],
        "ended": [r.ended or "normally" for r in runs],
    }
    lines += [(name, *values) for name, values in reached.items()]
    return rows(("", *(f"{swatch(e.run.config.method)} {html.escape(e.name)}" for e in entries)), lines)


def _told(value: object) -> str:
    return format_rate(value) if isinstance(value, float) else "–" if value is None else str(value)


def _number(value: float, form: str, unit: str = "") -> str:
    return "–" if math.isnan(value) else f"{value:{form}}{unit}"


def reasons(methods: Sequence[str], own_rates: bool, without_a_best: Sequence[str] = ()) -> list[str]:
    """Why a control is grey, or makes no difference to a method that is ticked; in whole sentences."""
    told = []
    if not any(METHODS[name].inits for name in methods):
        told.append("“N in SLoRA” is grey: only SLoRA has a choice of N, and it is not ticked.")
    if methods and all(METHODS[name].build is None for name in methods):
        told.append("“rank r” is grey: full fine-tuning trains every weight and has no rank.")
    if own_rates and without_a_best:
        told.append(f"The slider's rate is for {', '.join(without_a_best)}: no best rate was recorded here.")
    elif own_rates:
        told.append("“learning rate” is grey: each method has its own.")
    return told


def verdict(runs: Sequence[Run], should_stop: bool = False) -> str:
    """How what was just trained has ended, as HTML."""
    failed = [r for r in runs if r.error]
    if failed:
        return error(f"{failed[0].config.label}: {failed[0].error}. What was trained up to there is kept.")
    if should_stop and not runs:
        return "Stopped before the first step."
    if should_stop or any(r.stopped for r in runs):
        return "Stopped; what was trained is kept."
    gone = [r.config.label for r in runs if r.diverged]
    if gone:
        return f"Done. {html.escape(', '.join(gone))} diverged: the loss became infinite. Try a smaller rate."
    changed = [r for r in runs if r.metrics.get("step0_change", 0) > STEP0_NOISE]
    if changed:
        label, change = html.escape(changed[-1].config.label), changed[-1].metrics["step0_change"]
        return f"Done. {label} changed the model by {change:.1%} before the first step."
    return "Done. Move a slider and run again: the runs stay."
