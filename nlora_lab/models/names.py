"""The names of models and what they mean: a model that ships, a local folder, or an id on the Hugging Face hub."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path
from typing import Any

from nlora_lab.core.documents import check_regular, read_json
from nlora_lab.core.errors import ModelError
from nlora_lab.core.files import shipped_folder

EMBEDDED = "embedded"
"""The name of the model that ships with the package, and that everything uses unless told otherwise."""
LARGER = "larger"
"""The name of the second model that ships, with three times the parameters."""
SHIPPED = (EMBEDDED, LARGER)
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
CONFIG = "config.json"
SINGLE = "model.safetensors"  # the weight file of a model that is not split
INDEX = "*.safetensors.index.json"  # the list of the weight files of a model that is split
DOCUMENTS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
READ = (CONFIG, *DOCUMENTS, "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "chat_template.jinja")
"""The files that are read with the weights of a model."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def check_model(name: str) -> str | Path:
    """Find out what ``name`` means, without loading it.

    Args:
        name: "embedded", "larger", a folder in the layout of the hub, or a hub id (``owner/name``).

    Returns:
        The folder of the model that ships, the folder, or the hub id.

    Raises:
        ModelError: ``name`` is none of these, or a folder without a safetensors model.
    """
    if name in SHIPPED:
        return shipped_folder("data") / name
    try:
        folder = Path(name).expanduser()
        exists = bool(name) and folder.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, no such home, a NUL in it
        folder, exists = Path(), False
    if exists:
        _check_folder(folder)
        return folder
    if folder.is_absolute() or not HUB_ID.fullmatch(name):
        raise ModelError(
            f"model={name!r} is not known: use 'embedded', 'larger', an existing folder in the Hugging Face layout, "
            "or a hub id such as 'HuggingFaceTB/SmolLM2-135M'"
        )
    return name


def is_pickle(name: str | Path) -> bool:
    """Return whether a file is a pickle by its ending. Opening a pickle can run code, so none is ever opened."""
    return str(name).lower().endswith(PICKLES)


def read_document(file: Path) -> dict[str, Any]:
    """Read a JSON file of a model, which must be an object.

    Args:
        file: the file.

    Returns:
        Its values by name.

    Raises:
        ModelError: the file cannot be read, or is not a JSON object. The message names it.
    """
    remedy = "download or save the model again"
    try:
        document = read_json(file)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}); {remedy}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{file} is not an object; {remedy}")
    return document


def check_file(file: Path) -> None:
    """Check a file that transformers reads with a model, because it passes over some that it cannot read.

    Args:
        file: the file. It need not exist, but a link must lead to a file.

    Raises:
        ModelError: the file is there and cannot be read. The message names it.
    """
    if not os.path.lexists(file):
        return
    if file.name == CONFIG:
        check_config(file)
    elif file.name in DOCUMENTS:
        read_document(file)
        with file.open("rb") as content:  # transformers passes over a file with this mark
            if content.read(3) == codecs.BOM_UTF8:
                raise ModelError(f"{file} begins with a byte order mark; save it as UTF-8 without one")
    else:
        try:
            check_regular(file)
        except OSError as error:
            raise ModelError(f"{file} cannot be read ({error}); download or save the model again") from error


def check_config(file: Path) -> None:
    """Check that a ``config.json`` can be read, and that no model of its sizes would fill every memory.

    Args:
        file: the config.

    Raises:
        ModelError: the file is not a JSON object, or a size in it is beyond any model. The message names it.
    """
    config, remedy = read_document(file), "download or save the model again"
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name, value in part.items():
            limit = next((most for pattern, most in LARGEST.items() if re.search(pattern, name)), None)
            if limit is None or not isinstance(value, int | float):
                continue
            least = 0 if LAYERS.search(name) else -1  # which stands for a default elsewhere
            if not least <= value <= limit:
                raise ModelError(f"{file} says {name}={value!r}, and it must be from {least} to {limit:,}; {remedy}")


LAYERS = re.compile(r"(^|_)(num_(hidden_)?layers|n_layers?|(en|de)coder_layers|num_blocks|depth)$")
LARGEST = {
    LAYERS.pattern: 10_000,
    r"^num_labels$": 1_000_000,
    r"(^|_)(num_.*experts|num_.*heads|n_heads?|.*attention_heads)$": 100_000,
    r"(^|_)(hidden_size|n_embd|d_model|dim|head_dim|intermediate_size|.*ffn_dim|n_inner|d_ff|vocab_size)$": 2**24,
}
"""The largest sizes that are believed, by the ends of their names in a config."""


def _check_folder(folder: Path) -> None:
    if not (folder / CONFIG).exists():
        raise ModelError(f"the folder {folder} holds no model: {CONFIG} is missing; save one with save_pretrained")
    check_config(folder / CONFIG)
    if any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", INDEX)):
        return
    pickle = next((path for path in sorted(folder.iterdir()) if is_pickle(path)), None)
    if pickle is not None:
        raise ModelError(
            f"the folder {folder} has its weights in {pickle.name}, a pickle, which can run code when opened; "
            "convert it with save_pretrained, which writes safetensors"
        )
    raise ModelError(f"the folder {folder} holds no weights: no .safetensors file; save the model with save_pretrained")


def split_name(name: str) -> tuple[int, str]:
    """Split the name of a weight into layer and module.

    For example, ``encoder.layer.3.intermediate.dense.weight`` is ``(3, "intermediate.dense")``.

    Args:
        name: the name. A final ``.weight`` is left out.

    Returns:
        The first number in the name and the part after it; without a number, −1 and the complete name.
    """
    parts = name.removesuffix(".weight").split(".")
    at = next((i for i, part in enumerate(parts) if is_layer_number(part)), None)
    if at is None or at + 1 == len(parts):
        return -1, ".".join(parts)
    return int(parts[at]), ".".join(parts[at + 1 :])


def is_layer_number(part: str) -> bool:
    """Whether a part of a name is the number of a layer. "²" is a digit in Unicode and no number."""
    return part.isascii() and part.isdigit() and len(part) < 10
