"""What the labs show in a page, with a kernel or without: recorded runs in compact form, scripts, and HTML files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
