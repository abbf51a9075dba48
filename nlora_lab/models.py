"""Loading a language model: the embedded one, a local folder, or a hub id."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.errors import InputError, ModelError
from nlora_lab.files import shipped

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
LOADING = threading.RLock()
"""Held while a model is built: transformers switches global state then, and two at once break both."""

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_model(name: str) -> str | Path:
    """What transformers should load for ``name``, without loading it.

    Raises :class:`ModelError` for a folder that holds no safetensors model and for a name that is
    neither "embedded", nor an existing folder, nor of a hub id's form ``owner/name``.
    """
    if name == EMBEDDED:
        return shipped("data") / EMBEDDED
    try:
        folder = Path(name).expanduser()
        there = bool(name) and folder.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, no such home, a NUL in it
        folder, there = Path(), False
    if there:
        _check_folder(folder)
        return folder
    if folder.is_absolute() or not HUB_ID.fullmatch(name):
        raise ModelError(
            f"model={name!r} is not known: use 'embedded', an existing folder in the Hugging Face layout, "
            "or a hub id such as 'HuggingFaceTB/SmolLM2-135M'"
        )
    return name


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"the folder {folder} holds no model: config.json is missing; save one with save_pretrained")
    if any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES):
        return
    pickled = next((p for pattern in PICKLES for p in folder.glob(pattern)), None)
    if pickled is not None:
        raise ModelError(
            f"the folder {folder} has its weights in {pickled.name}, a pickle, which can run code when opened; "
            "convert it with save_pretrained, which writes safetensors"
        )
    raise ModelError(f"the folder {folder} holds no weights: no .safetensors file; save the model with save_pretrained")


def load_model(name: str = EMBEDDED) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in float32 on the CPU, with its tokenizer, in evaluation mode.

    ``name``: "embedded", a folder in the hub's layout, or a hub id. Code from a hub is never run.
    Raises :class:`ModelError` with the reason and a remedy where it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = check_model(name)
    try:
        if isinstance(source, str):
            check_reachable(source)
        with LOADING, _quiet():
            # False, not the default: that one asks on stdin whether to run the model's own code
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model, info = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ModelError(
                f"the weights of {name!r} lack {len(missing)} tensors, {missing[0]} first; they would start at random: "
                "download or save the model again"
            )
    except ModelError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, SafetensorError, …
        raise ModelError(_explain(name, source, error)) from error
    check_whole(name, model, tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def check_whole(name: str, model: Any, tokenizer: Any) -> None:
    """Raise :class:`ModelError` for a tokenizer that does not fit the model, and for NaN in a weight."""
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {name!r} has no end-of-text token; set eos_token in tokenizer_config.json")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens and the model {rows}; "
            "put the tokenizer beside it that it was trained with"
        )
    for where, weight in model.named_parameters():
        if not bool(weight.detach().isfinite().all()):
            raise ModelError(f"{where} of {name!r} holds NaN or infinity; download or save the model again")


def check_reachable(hub_id: str) -> None:
    """Say within seconds that there is no network; the hub's own client retries for a minute."""
    from huggingface_hub import constants, get_session, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
        return
    remedy = "load it once with a connection, or use model='embedded', which needs no network"
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"model={hub_id!r} is not in the cache and HF_HUB_OFFLINE is set; {remedy}")
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # the HTTP library's own classes, which differ between versions
        reason = " ".join(str(error).split())[:100]
        raise ModelError(
            f"model={hub_id!r} is not in the cache and the hub is out of reach ({reason}); {remedy}"
        ) from error


def _explain(name: str, source: str | Path, error: Exception) -> str:
    first = " ".join(str(error).split())[:200] or type(error).__name__
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return f"model={name!r} needs code of its own, which is never run here; choose a model that transformers knows"
    if isinstance(source, Path):
        if type(error).__name__ == "SafetensorError":
            return f"a weight file in {source} is truncated or not safetensors ({first}); download or save it again"
        return f"the folder {source} cannot be loaded ({first}); save model and tokenizer with save_pretrained"
    if "gated" in first.lower() or "401" in first or "403" in first:
        return f"model={name!r} is gated or private; accept its licence on the hub and run 'hf auth login'"
    return (
        f"model={name!r} could not be loaded from the hub ({first}); check the id and the connection, "
        "or use model='embedded', which needs no network"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No weight-loading bar: it would be the first thing every notebook prints on stderr."""
    from transformers.utils import logging

    had_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_bar:
            logging.enable_progress_bar()


def linear_layers(model: Any) -> dict[str, Any]:
    """The linear layers an adapter can sit on, by dotted name: every ``nn.Linear`` but the output head."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def target_layers(model: Any, target_modules: Any = "all-linear") -> dict[str, Any]:
    """The linear layers that PEFT's ``target_modules`` means in ``model``, by dotted name.

    Raises :class:`nlora_lab.InputError` if that matches nothing, or something that is not linear.
    """
    from peft.config import PeftConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if target_modules == "all-linear":
        layers = linear_layers(model)
    else:
        wanted: Any = PeftConfig()
        wanted.target_modules = target_modules if isinstance(target_modules, str) else set(target_modules)
        layers = {name: m for name, m in model.named_modules() if name and check_target_module_exists(wanted, name)}
    if not layers:
        raise InputError(f"target_modules={target_modules!r} matches no layer of this model; name some of its layers")
    for name, module in layers.items():
        if not isinstance(module, nn.Linear | Conv1D):
            raise InputError(f"{name} is a {type(module).__name__}, not a linear layer; leave it out of target_modules")
    return layers


def meta_body(source: Any) -> Any:
    """The model of a config without its output head, on the meta device: shapes, but no weights.

    ``source``: a transformers config, "embedded", a folder with a config.json, or a hub id. Raises
    :class:`ModelError` where there is no such config, and for one that needs code of its own.
    """
    import torch
    from transformers import AutoConfig, AutoModel, PretrainedConfig

    if not isinstance(source, PretrainedConfig | str | Path):
        raise ModelError(f"{type(source).__name__} is no model, config, folder or hub id; give one of these")
    config = source
    try:
        if not isinstance(source, PretrainedConfig):
            place = shipped("data") / EMBEDDED if source == EMBEDDED else source
            config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        with LOADING, torch.device("meta"):
            return AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, …
        first = " ".join(str(error).split())[:200]
        name = type(source).__name__ if isinstance(source, PretrainedConfig) else repr(str(source))
        raise ModelError(
            f"no architecture can be built from {name} ({first}); give a transformers config, a folder with a "
            "config.json, or the id of a model on the hub"
        ) from error
