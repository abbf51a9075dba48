"""cli.lab."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import shipped_folder

if TYPE_CHECKING:
    pass


START = "00_start_here.ipynb"
COPIES = "nlora-lab-notebooks"


def _lab(options: argparse.Namespace) -> int:
    if find_spec("jupyterlab") is None:
        raise InputError("JupyterLab is not installed; run: pip install 'nlora-lab[lab]'")
    folder = notebook_folder(Path.cwd())
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.root_dir", str(folder.parent)]
    command += [f"--LabApp.default_url=/lab/tree/{folder.name}/{START}"]
    command += ["--no-browser"] if options.no_browser else []
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # containers
    command += options.rest
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 0  # Ctrl-C is how a JupyterLab server is ended


def notebook_folder(here: Path) -> Path:
    """Where to open the notebooks: the clone's own, or copies in ``here`` of those in the wheel.

    A copy that is already there is left as it is: it may hold somebody's answers.
    """
    source = shipped_folder("notebooks")
    if "_shipped" not in source.parts:
        return source
    target = here / COPIES
    target.mkdir(exist_ok=True)
    for notebook in sorted(source.glob("*.ipynb")):
        if not (target / notebook.name).exists():
            shutil.copy(notebook, target / notebook.name)
    return target
