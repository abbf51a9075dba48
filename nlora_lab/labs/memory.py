"""``MemoryLab``: what a run needs, before there is one; every setting that changes it is a control."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import ipywidgets as widgets

from nlora_lab.core.errors import InputError
from nlora_lab.core.formatting import format_bytes
from nlora_lab.core.validation import check_choice
from nlora_lab.estimates.memory import Architecture, architecture, memory, sizes
from nlora_lab.estimates.recipes import RECIPES
from nlora_lab.estimates.requirements import SPARE, Estimate, estimate, free_memory, lengths_of, place_of, setting_of
from nlora_lab.estimates.throughput import CARDS
from nlora_lab.labs.figures import Figures
from nlora_lab.labs.panel import WORDS, FigurePanel
from nlora_lab.methods.table import METHODS, get_method
from nlora_lab.models.loading import meta_body
from nlora_lab.models.names import EMBEDDED
from nlora_lab.plots.memory import PARTS, MemoryDrawing
from nlora_lab.runs.config import RunConfig

MODELS = {"Llama-2-7B": "paper-gsm8k", "SmolLM2-135M": "colab-gsm8k", "the embedded model": "laptop"}
"""By its name in the lab: the recipe that has its shapes."""


class MemoryLab(FigurePanel):
    """The memory of a training run by what holds it, one bar a method, beside what a card can give.

    Nothing is loaded: it is all computed from the model's shapes (:func:`nlora_lab.estimate`). The controls ``model``,
    ``card``, ``rank``, ``batch`` (rows a step), ``parts`` (the smaller batches it is made of), ``length`` (tokens a
    row), ``half`` (frozen weights in bfloat16) and ``checkpointing`` can be set from Python too; :attr:`estimates` are
    what is shown.

    Args:
        methods: names, one bar each.
        model: a hub id, a folder, or a transformers config, in the place of those that the lab offers.
        figures: "plotly", "image", or "auto" to choose by where the notebook runs.

    Raises :class:`nlora_lab.InputError` for an unknown method and a model whose shapes cannot be read.
    """

    def __init__(
        self, methods: Sequence[str] = ("lora", "nlora", "full"), model: Any = None, *, figures: Figures = "auto"
    ) -> None:
        if isinstance(methods, str) or not methods:
            raise InputError(f"methods={methods!r} must be a list of names, for example ('lora', 'nlora')")
        for name in methods:
            get_method(name)
        self.methods = tuple(methods)
        self._yours = None if model is None else _shapes(model)
        names = (["yours"] if model is not None else []) + list(MODELS)
        powers = [2**k for k in range(8)]
        wide: dict[str, Any] = {"style": WORDS, "layout": widgets.Layout(width="330px")}
        self.model = widgets.Dropdown(options=names, description="model", **wide)
        self.card = widgets.Dropdown(options=list(CARDS), description="card", **wide)
        self.rank = widgets.SelectionSlider(options=powers, value=8, description="rank r", **wide)
        self.batch = widgets.SelectionSlider(options=powers, value=16, description="batch", **wide)
        self.parts = widgets.SelectionSlider(options=powers, description="in parts", **wide)
        self.length = widgets.SelectionSlider(
            options=[64, 128, 256, 512, 1024, 2048], value=512, description="tokens", **wide
        )
        self.half = widgets.Checkbox(value=True, description="frozen weights in bfloat16", indent=False)
        self.checkpointing = widgets.Checkbox(value=False, description="checkpointing", indent=False)
        self._controls = [
            [self.model, self.card, self.half],
            [self.rank, self.length, self.checkpointing],
            [self.batch, self.parts],
        ]
        self._open(figures)
        self._follow(
            self.model, self.card, self.rank, self.length, self.half, self.checkpointing, self.batch, self.parts
        )

    def config(self, method: str) -> RunConfig:
        """The run of ``method`` that the controls describe; no more parts than the batch has rows."""
        check_choice("method", method, METHODS)
        return RunConfig(
            method, rank=min(self.rank.value, self._shape().narrowest), batch_size=self.batch.value,
            accumulation=min(self.parts.value, self.batch.value), max_length=self.length.value, batching="packed",
            precision="bf16" if self.half.value else "float32", checkpointing=self.checkpointing.value,
        )  # fmt: skip

    @property
    def estimates(self) -> dict[str, Estimate]:
        """What each method needs, by its name."""
        return {name: estimate(self.config(name), self.card.value, config=self._shape()) for name in self.methods}

    def told(self) -> str:
        """What each needs and which of them fit, in a line."""
        drawn = self.drawing()
        needs = [f"{METHODS[name].label} {format_bytes(peak)}" for name, peak in drawn.peaks.items()]
        fitting = [METHODS[name].label for name in drawn.held if drawn.fits(name)]
        return f"{self.model.value} on {drawn.card}: {', '.join(needs)}; fits: {', '.join(fitting) or 'none'}"

    def drawing(self) -> MemoryDrawing:
        """The figure's data as the controls say now."""
        shape, card = self._shape(), CARDS[self.card.value]
        held, peaks = {}, {}
        for name in self.methods:
            cfg = self.config(name)
            place = place_of(cfg, self.card.value)
            found = memory(shape, cfg, lengths_of(cfg, shape)[0], setting_of(cfg, shape, place))
            held[name] = {part: float(getattr(found, part)) for part in PARTS}
            peaks[name] = float(found.total)
        return MemoryDrawing(held, peaks, free_memory(place) * (1 - SPARE), card.words)

    def _shape(self) -> Architecture:
        if self.model.value == "yours" and self._yours is not None:
            return self._yours
        return _of_recipe(MODELS[self.model.value])


def _shapes(model: Any) -> Architecture:
    return architecture(model) if isinstance(model, str) else sizes(meta_body(model))


@lru_cache(maxsize=len(MODELS))
def _of_recipe(name: str) -> Architecture:
    recipe = RECIPES[name]
    shapes = recipe.own_architecture(recipe.config("lora"))
    return architecture(EMBEDDED) if shapes is None else sizes(meta_body(shapes))
