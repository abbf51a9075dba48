"""One folder from which many laptops install the package without a network.

pip collects the wheels: that of this package, and those of everything it needs. A pack is for the operating system and
the Python version that made it, because pip cannot decide what another system needs. Packs of several systems can
share a folder.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import check_writable, package_version, shipped_folder, write_atomically
from nlora_lab.core.formatting import format_bytes
from nlora_lab.core.validation import check_choice

REQUIREMENT = "nlora-lab[lab]"
TORCH_CPU = "https://download.pytorch.org/whl/cpu"
README = """\
nlora-lab {version}, to install without a network
{line}

{count} wheels, {size}, for {system} with Python {python}. The notebooks are in the folder notebooks.

Open a terminal in this folder. These two commands install everything:

Linux and macOS:

    python3 -m venv nlora-env
    nlora-env/bin/pip install --no-index --find-links . "{requirement}"

Windows (PowerShell):

    py -{python} -m venv nlora-env
    nlora-env\\Scripts\\pip install --no-index --find-links . "{requirement}"

Then `nlora-env/bin/nlora-lab lab` (on Windows `nlora-env\\Scripts\\nlora-lab lab`) opens the notebooks.
"""


@dataclass(frozen=True)
class Pack:
    """A folder of wheels.

    Attributes:
        folder: the folder.
        wheels: the size of each wheel in bytes, by file name, the largest first.
    """

    folder: Path
    wheels: dict[str, int]

    @property
    def size(self) -> int:
        """The bytes of all wheels."""
        return sum(self.wheels.values())

    def __str__(self) -> str:
        largest = [f"  {format_bytes(size):>9}  {name}" for name, size in list(self.wheels.items())[:5]]
        total = f"{len(self.wheels)} wheels, {format_bytes(self.size)}, in {self.folder}. The largest:"
        return "\n".join([total, *largest])


def make_pack(folder: Path, torch: str = "default") -> Pack:
    """Collect the wheels of this package and of all it needs, with the notebooks and a README.

    If the download is interrupted, call it again: pip's cache and the folder keep what is complete. At the end pip
    resolves the installation from the folder alone, so a pack that is returned can be installed.

    Args:
        folder: the folder. It is created if it is missing.
        torch: "default", or "cpu" for PyTorch's CPU build, which is far smaller on Linux.

    Returns:
        The pack.

    Raises:
        InputError: the folder cannot be written, pip is missing, or pip failed. The message has pip's own line.
    """
    check_choice("torch", torch, ("default", "cpu"))
    if find_spec("pip") is None:
        raise InputError("pip is missing in this environment; run: python -m ensurepip")
    check_writable(folder, str(folder))
    for old in folder.glob("nlora_lab-*.whl"):
        old.unlink()
    extra = ["--extra-index-url", TORCH_CPU] if torch == "cpu" else []
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), *_own_source())
    _pip("wheel", "--wheel-dir", str(folder), "--find-links", str(folder), *_constraints(), *extra, REQUIREMENT)
    # ignoring what is installed here, and every index
    _pip("install", "--dry-run", "--ignore-installed", "--no-index", "--find-links", str(folder), REQUIREMENT)
    shutil.copytree(shipped_folder("notebooks"), folder / "notebooks", dirs_exist_ok=True)
    sizes = {wheel.name: wheel.stat().st_size for wheel in folder.glob("*.whl")}
    pack = Pack(folder, dict(sorted(sizes.items(), key=lambda item: -item[1])))
    write_atomically(folder / "README.txt", _readme(pack))
    return pack


def _own_source() -> list[str]:
    """What pip builds the wheel of this package from: the clone, or what the package was installed from."""
    clone = _clone()
    if clone is not None:
        return [str(clone), *(["--no-build-isolation"] if find_spec("hatchling") else [])]
    try:
        origin = distribution("nlora-lab").read_text("direct_url.json")  # as pip writes it for an address
    except PackageNotFoundError:
        origin = None
    source = json.loads(origin) if origin else {}
    if "url" in source:
        scheme = f"{source['vcs_info']['vcs']}+" if "vcs_info" in source else ""
        return [f"nlora-lab @ {scheme}{source['url']}"]
    return [f"nlora-lab=={package_version()}"]


def _clone() -> Path | None:
    root = shipped_folder("notebooks").parent
    return root if (root / "pyproject.toml").is_file() and root.name != "_shipped" else None


def _constraints() -> list[str]:
    """The versions that were tested, if this is a clone."""
    clone = _clone()
    file = None if clone is None else clone / "constraints.txt"
    return ["--constraint", str(file)] if file is not None and file.is_file() else []


def _pip(*arguments: str) -> None:
    """Run pip with its progress on stderr, and turn its error into one line."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, check=False)  # 2 is stderr
    if done.returncode:
        lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = lines[0] if lines else " ".join(done.stderr.split())[-300:] or f"exit code {done.returncode}"
        raise InputError(f"pip {arguments[0]} failed ({reason[:400]}); mend it and run the same command to resume")


def _readme(pack: Pack) -> str:
    version, python = package_version(), f"{sys.version_info.major}.{sys.version_info.minor}"
    system = {"win32": "Windows", "darwin": "macOS"}.get(sys.platform, "Linux")
    title = f"nlora-lab {version}, to install without a network"
    return README.format(
        version=version, line="=" * len(title), count=len(pack.wheels), size=format_bytes(pack.size), system=system,
        python=python, requirement=REQUIREMENT,
    )  # fmt: skip
