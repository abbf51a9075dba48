"""Give damaged documents to every reader of files, guided by coverage, and look for anything but a clear error.

    pip install atheris
    python -m tools.fuzz_readers json -max_total_time=60     # the options of libFuzzer follow the name of the reader

The readers are of JSON, of the header of a safetensors file, of rows in JSONL, of ``adapter_config.json``, of a record
and of the index of a split model. A reader may return, or raise ``ValueError``, of which ``InputError`` is one, or
``OSError``. Anything else is a finding: libFuzzer writes the input to a file. Keep it as a case of
tests/core/test_documents.py. This is not in the checks, because atheris has no build for every system.
"""

from __future__ import annotations

import contextlib
import importlib
import operator
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

READERS = {
    "json": ("a.json", "nlora_lab.core.documents", "read_json"),
    "header": ("model.safetensors", "nlora_lab.models.safetensors", "read_header"),
    "index": ("model.safetensors.index.json", "nlora_lab.models.safetensors", "read_index"),
    "config": ("config.json", "nlora_lab.models.names", "check_config"),
    "rows": ("rows.jsonl", "nlora_lab.tasks.sources", "read_file"),
    "record": ("run.json", "nlora_lab.runs.run", "Run.load"),
    "adapter": ("adapter_config.json", "nlora_lab.adapters.saved", "read_settings"),
}
"""By name: the name of the file, and the module and the function that read it."""


def main() -> None:
    """Fuzz the reader that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"name one of {', '.join(READERS)}")
    name, module, function = READERS[sys.argv.pop(1)]
    with atheris.instrument_imports(include=["nlora_lab"]):
        read = operator.attrgetter(function)(importlib.import_module(module))
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="nlora-fuzz-") as folder:
        file = Path(folder) / name

        def one_input(data: bytes) -> None:
            file.write_bytes(data)
            with contextlib.suppress(ValueError, OSError):
                read(file if name != "adapter_config.json" else file.parent)

        atheris.Setup(sys.argv, one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
