"""Figures: each is described once and drawn by plotly or by matplotlib."""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
