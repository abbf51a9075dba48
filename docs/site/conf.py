"""The settings of Sphinx. ``make site`` assembles the sources and runs it (tools/website)."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nlora_lab.core.files import package_version  # noqa: E402

project = "nlora-lab"
author = "the nlora-lab authors"
release = version = package_version()
root_doc = "index"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "tools.website.mathml"]
exclude_patterns = ["**/.ipynb_checkpoints"]

html_theme = "furo"
html_title = "nlora-lab"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_copy_source = False
html_math_renderer = "mathml"  # the browser draws it: no script, no network

# the notebooks are shown as they were committed
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # widgets need a kernel; their pictures are shown instead
nb_mime_priority_overrides = [("*", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
myst_url_schemes = ("http", "https", "mailto")

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # they are read as reST, in which the star of a shape is emphasis

pygments_dark_style = "monokai"
