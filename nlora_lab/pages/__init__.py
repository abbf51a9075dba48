"""What the labs show in a page, with a kernel or without: recorded runs in compact form, scripts, and HTML files."""

from nlora_lab.core.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
