"""The commands ``lab``, ``notebooks`` and ``pack``: the notebooks in JupyterLab, their editions, a class offline."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nlora_lab.cli.parsers import add_command
from nlora_lab.core.errors import InputError
from nlora_lab.core.files import atomic_file, expand_path, shipped_folder
from nlora_lab.core.interrupts import signal_number

START = "00_start_here.ipynb"
COPIES = "nlora-lab-notebooks"


def add_lab(commands: Any) -> argparse.ArgumentParser:
    """Add ``lab`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "lab", "open the notebooks in JupyterLab (other options go to jupyter lab)",
        "nlora-lab lab --no-browser --port 9999", open_lab, stands="JupyterLab has ended",
    )  # fmt: skip
    parser.add_argument("--no-browser", action="store_true", help="start the server and print its address")
    return parser


def add_notebooks(commands: Any) -> argparse.ArgumentParser:
    """Add ``notebooks`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "notebooks", "write the notebooks for students, with solutions, or as slides",
        "nlora-lab notebooks class\nnlora-lab notebooks for-me --edition solutions\n"
        "nlora-lab notebooks talk --edition slides", _write_notebooks,
    )  # fmt: skip
    parser.add_argument("folder", metavar="FOLDER", help="the folder to write into")
    parser.add_argument("--edition", default="students", help="students, solutions or slides (default: %(default)s)")
    return parser


def add_pack(commands: Any) -> argparse.ArgumentParser:
    """Add ``pack`` to the subparsers, and return its parser."""
    parser = add_command(
        commands, "pack", "collect all wheels and the notebooks in a folder, to install offline",
        "nlora-lab pack stick", _pack,
    )  # fmt: skip
    parser.add_argument("folder", metavar="FOLDER", help="the folder, for example on a USB stick")
    parser.add_argument(
        "--torch", default="default", help="default, or cpu: PyTorch's CPU build, far smaller on Linux"
    )  # fmt: skip
    return parser


def open_lab(options: argparse.Namespace) -> int:
    """Start JupyterLab at the first notebook, and return its exit code."""
    if find_spec("jupyterlab") is None:
        raise InputError("JupyterLab is not installed; run: pip install 'nlora-lab[lab]'")
    folder = notebook_folder(Path.cwd())
    command = [sys.executable, "-P", "-m", "jupyterlab", "--ServerApp.root_dir", str(folder.parent)]
    command += [f"--LabApp.default_url=/lab/tree/{folder.name}/{START}"]
    command += ["--no-browser"] if options.no_browser else []
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # containers
    command += options.rest
    try:
        return subprocess.run(command, check=False, env=jupyter_environment()).returncode
    except KeyboardInterrupt as interrupt:
        if signal_number(interrupt) != signal.SIGINT:
            raise
        return 0  # Ctrl-C is the usual end of a JupyterLab server


def jupyter_environment() -> dict[str, str]:
    """Return the environment in which JupyterLab asks nothing about news, and looks for no updates.

    JupyterLab has no option for this. It reads ``labconfig/page_config.json`` from the folders in
    ``JUPYTER_CONFIG_PATH``.
    """
    folders = [str(Path(__file__).parent / "jupyter"), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    return {**os.environ, "JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, folders))}


def _write_notebooks(options: argparse.Namespace) -> int:
    from nlora_lab.course.teaching.editions import write_editions

    for path in write_editions(expand_path(options.folder, "FOLDER"), options.edition):
        print(path)
    return 0


def _pack(options: argparse.Namespace) -> int:
    from nlora_lab.course.teaching.pack import make_pack

    print(make_pack(expand_path(options.folder, "FOLDER"), options.torch))
    return 0


def notebook_folder(target: Path) -> Path:
    """Return the folder of notebooks to open.

    In a clone this is the clone's own folder. The notebooks of a wheel are copied first. An existing copy is never
    overwritten, because it may hold somebody's answers.

    Args:
        target: the folder to copy into.

    Returns:
        The folder of the notebooks.

    Raises:
        InputError: the copies cannot be written.
    """
    source = shipped_folder("notebooks")
    if "_shipped" not in source.parts:
        return source
    copies = target / COPIES
    for notebook in sorted(source.glob("*.ipynb")):
        if not os.path.lexists(copies / notebook.name):
            with atomic_file(copies / notebook.name) as part:  # half a copy would never be replaced
                shutil.copyfile(notebook, part)
    return copies
