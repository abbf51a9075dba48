"""The lab's own control: which methods to train, as ticked boxes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ipywidgets as widgets
import traitlets

from nlora_lab.core.validation import check_choice
from nlora_lab.methods.table import METHODS


class MethodBoxes(widgets.HBox):
    """One box a method. ``value`` is the tuple of ticked names; a single name may be set too."""

    value = traitlets.Any()

    def __init__(self, ticked: Iterable[str], methods: Iterable[str] | None = None) -> None:
        names = list(methods or METHODS)
        self._boxes = {name: _box(name) for name in names}
        super().__init__(list(self._boxes.values()), layout=widgets.Layout(flex_flow="row wrap"))
        self.value = tuple(ticked)
        for box in self._boxes.values():
            box.observe(self._from_boxes, "value")

    @traitlets.validate("value")
    def _to_names(self, proposal: dict[str, Any]) -> tuple[str, ...]:
        given = proposal["value"]
        names = [given] if isinstance(given, str) else list(given)
        for name in names:
            check_choice("method", name, self._boxes)
        return tuple(name for name in self._boxes if name in names)

    @traitlets.observe("value")
    def _to_boxes(self, change: dict[str, Any]) -> None:
        for name, box in self._boxes.items():
            box.value = name in change["new"]

    def _from_boxes(self, _: object) -> None:
        self.value = tuple(name for name, box in self._boxes.items() if box.value)

    def disable(self, disabled: bool) -> None:
        """Grey the boxes out, or back."""
        for box in self._boxes.values():
            box.disabled = disabled


def _box(name: str) -> widgets.Checkbox:
    method = METHODS[name]
    return widgets.Checkbox(
        description=method.label,
        tooltip=f"trains {method.trains}; starts from {method.start}",
        indent=False,
        layout=widgets.Layout(width="auto", margin="0 14px 0 0"),
    )
