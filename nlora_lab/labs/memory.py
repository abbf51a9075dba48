"""``MemoryLab``: the memory that a run needs, before there is one. Every setting that changes it is a control."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import ipywidgets as widgets

from nlora_lab.core.errors import InputError
from nlora_lab.core.formatting import format_bytes
from nlora_lab.core.validation import check_choice
from nlora_lab.estimates.conditions import SPARE, estimate_device, free_memory, resolve_on
from nlora_lab.estimates.memory import memory_needed
from nlora_lab.estimates.recipes import RECIPES
from nlora_lab.estimates.requirements import Estimate, estimate
from nlora_lab.estimates.shapes import Architecture, architecture_sizes, read_architecture
from nlora_lab.estimates.throughput import CARDS
from nlora_lab.labs.figures import Figures
from nlora_lab.labs.panel import LABEL_STYLE, FigurePanel
from nlora_lab.methods.table import METHODS, get_method
from nlora_lab.models.loading import meta_body
from nlora_lab.models.names import EMBEDDED
from nlora_lab.plots.memory import PARTS, MemoryDrawing
from nlora_lab.runs.config import RunConfig

MODELS = {"Llama-2-7B": "paper-gsm8k", "SmolLM2-135M": "colab-gsm8k", "the embedded model": "laptop"}
"""The models of the lab, each with the name of a recipe that trains a model of this shape."""


class MemoryLab(FigurePanel):
    """The memory of a training run by what holds it: one bar per method, beside the memory of a card.

    Nothing is loaded. All numbers come from the shapes of the model, as in ``nl.estimate``. Every control is an
    attribute and can be set from Python. The estimates that are shown are ``estimates``.

    Args:
        methods: the names of the methods, one bar each.
        model: a hub id, a folder, or a transformers config. It is then the first choice of ``model``, "yours".
        figures: "plotly", "image", or "auto" to choose by where the notebook runs.

    Attributes:
        model: the menu of the models.
        card: the menu of the cards.
        rank: the slider of the rank r. A rank above the narrowest layer counts as that layer's.
        batch: the slider of the batch size, in rows per step.
        parts: the slider of the number of micro-batches per step. There are at most as many as rows.
        length: the slider of the row length, in tokens.
        half: the box for frozen weights in bfloat16 instead of float32.
        checkpointing: the box for gradient checkpointing.
        methods: the names of the methods.

    Raises:
        InputError: a method is not known, or the shapes of the model cannot be read.
    """

    def __init__(
        self, methods: Sequence[str] = ("lora", "nlora", "full"), model: Any = None, *, figures: Figures = "auto"
    ) -> None:
        if isinstance(methods, str) or not methods:
            raise InputError(f"methods={methods!r} must be a list of names, for example ('lora', 'nlora')")
        for name in methods:
            get_method(name)
        self.methods = tuple(methods)
        self._custom = None if model is None else _architecture_of(model)
        models = [*(["yours"] if self._custom else []), *MODELS]
        powers = [2**k for k in range(8)]
        look: dict[str, Any] = {"style": LABEL_STYLE, "layout": widgets.Layout(width="330px")}
        self.model = widgets.Dropdown(options=models, description="model", **look)
        self.card = widgets.Dropdown(options=list(CARDS), description="card", **look)
        self.rank = widgets.SelectionSlider(options=powers, value=8, description="rank r", **look)
        self.batch = widgets.SelectionSlider(options=powers, value=16, description="batch", **look)
        self.parts = widgets.SelectionSlider(options=powers, description="in parts", **look)
        self.length = widgets.SelectionSlider(
            options=[64, 128, 256, 512, 1024, 2048], value=512, description="tokens", **look
        )
        self.half = widgets.Checkbox(value=True, description="frozen weights in bfloat16", indent=False)
        self.checkpointing = widgets.Checkbox(value=False, description="checkpointing", indent=False)
        self._controls = [
            [self.model, self.card, self.half],
            [self.rank, self.length, self.checkpointing],
            [self.batch, self.parts],
        ]
        self._open(figures)
        self._follow(*(control for row in self._controls for control in row))

    def config(self, method: str) -> RunConfig:
        """Return the run of a method that the controls describe.

        Args:
            method: the name of the method.

        Returns:
            The config. Its rank is at most the narrowest layer's, and it has at most one part per row.

        Raises:
            InputError: the method is not known.
        """
        check_choice("method", method, METHODS)
        return RunConfig(
            method, rank=min(self.rank.value, self._architecture().narrowest), batch_size=self.batch.value,
            accumulation=min(self.parts.value, self.batch.value), max_length=self.length.value, batching="packed",
            precision="bf16" if self.half.value else "float32", checkpointing=self.checkpointing.value,
        )  # fmt: skip

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The estimate of every method, by name."""
        shapes = self._architecture()
        return {name: estimate(self.config(name), self.card.value, config=shapes) for name in self.methods}

    def summary(self) -> str:
        """Return in one line what each method needs, and which methods fit."""
        drawing = self.drawing()
        needs = [f"{METHODS[name].label} {format_bytes(peak)}" for name, peak in drawing.peaks.items()]
        fitting = [METHODS[name].label for name in drawing.parts if drawing.fits(name)]
        return f"{self.model.value} on {drawing.card}: {', '.join(needs)}; fits: {', '.join(fitting) or 'none'}"

    def drawing(self) -> MemoryDrawing:
        """Return the figure that the controls select."""
        parts, peaks = {}, {}
        for name in self.methods:
            cfg = self.config(name)
            device = estimate_device(cfg, self.card.value)
            memory = memory_needed(self._architecture(), resolve_on(cfg, device))
            parts[name] = {part: float(getattr(memory, part)) for part in PARTS}
            peaks[name] = float(memory.total)
        return MemoryDrawing(parts, peaks, free_memory(device) * (1 - SPARE), CARDS[self.card.value].words)

    def _architecture(self) -> Architecture:
        if self.model.value == "yours" and self._custom is not None:
            return self._custom
        return _architecture_of_recipe(MODELS[self.model.value])


def _architecture_of(model: Any) -> Architecture:
    return read_architecture(model) if isinstance(model, str) else architecture_sizes(meta_body(model))


@lru_cache(maxsize=len(MODELS))
def _architecture_of_recipe(name: str) -> Architecture:
    recipe = RECIPES[name]
    config = recipe.model_config(recipe.config("lora"))
    return read_architecture(EMBEDDED) if config is None else architecture_sizes(meta_body(config))
