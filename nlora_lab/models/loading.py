"""Loading a language model: the embedded one, a local folder, or a hub id."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError, ModelError
from nlora_lab.core.files import shipped_folder
from nlora_lab.core.validation import check_choice
from nlora_lab.models import hub
from nlora_lab.models.hub import check_reachable as check_reachable
from nlora_lab.models.names import EMBEDDED, check_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
DTYPES = ("float32", "bfloat16")
LOADING_LOCK = threading.RLock()
"""Held while a model is built: transformers switches global state then, and two at once break both."""


def load_model(
    name: str = EMBEDDED,
    *,
    head: int = 0,
    revision: str | None = None,
    dtype: str | None = None,
    attention: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model on the CPU with its tokenizer, in evaluation mode.

    Args:
        name: "embedded", a folder in the hub's layout, or a hub id. Code from a hub is never run.
        head: 0 for a causal language model; otherwise a classifier with so many outputs, where 1 is a regression.
            Only the head of a classifier may be missing from the weights, or be there in another size: it then
            starts at random, so seed torch before.
        revision: branch, tag or commit of a model on the hub (see :func:`revision_of`); default: its newest state.
        dtype: "float32" or "bfloat16"; default: float32.
        attention: one of :data:`ATTENTIONS`; default: transformers' choice.

    Raises :class:`ModelError` with the reason and a remedy where it cannot be loaded.
    """
    import torch

    source = check_model(name)
    hub.check_revision(revision, source)
    _check_asked(head, dtype, attention)
    try:
        commit = _commit(source, revision)
        with LOADING_LOCK, _quiet(loading=not commit or hub.is_cached(str(source), commit), reports=not head):
            model, tokenizer, info = _load(
                name, source, head, revision=commit or None, dtype=getattr(torch, dtype or "float32"),
                attn_implementation=attention,
            )  # fmt: skip
        _check_loaded(name, model, info, head)
    except InputError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, SafetensorError, …
        raise ModelError(_explain(name, source, error, revision, attention)) from error
    check_complete(name, model, tokenizer, head)
    model._drawn = sorted({key.rpartition(".")[0] for key in info["missing_keys"]})
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not head and model.loss_type is None:
        model.loss_type = "ForCausalLM"  # as transformers assumes with a warning, of GPT-2 for one
    if head:  # a causal model's classifier looks for the last token before the padding
        model.config.pad_token_id = model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if commit:
        model.config._commit_hash = commit  # transformers' own field, which save_pretrained leaves out
    return model.eval(), tokenizer


def position_limit(model: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Find how many tokens the model has positions for.

    Args:
        model: a transformers model, with or without an adapter.
        tokenizer: its tokenizer, which may know a limit of its own.

    Returns:
        The smallest of the limits that are known, in tokens; ``None`` if none is.
    """
    limits = [getattr(model.config, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)  # RoBERTa's start after the padding's
    if tokenizer.model_max_length < 1e9:  # transformers writes "no limit" as 1e30
        limits.append(tokenizer.model_max_length)
    return min((limit for limit in limits if limit), default=None)


def stored_dtype(model: Any) -> Any:
    """The torch dtype that the config of ``model`` named when it was loaded; float32 where it named none."""
    import torch

    return getattr(model, "_stored_dtype", None) or torch.float32


def revision_of(model: Any) -> str:
    """The commit hash that ``model`` was loaded from on the hub; "" for a local one."""
    return str(getattr(getattr(model, "config", None), "_commit_hash", None) or "")


def _check_asked(head: Any, dtype: Any, attention: Any) -> None:
    if not isinstance(head, int) or isinstance(head, bool) or head < 0:
        raise InputError(f"head={head!r} must be a whole number: 0 for a language model, or a classifier's outputs")
    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
    if attention is not None:
        check_choice("attention", attention, ATTENTIONS)
    if attention == "flash_attention_2":
        _check_flash()


def _check_flash() -> None:
    # without the package transformers would fetch a compiled kernel from the hub and run it
    import torch

    lacks = "a CUDA card" if not torch.cuda.is_available() else None
    if importlib.util.find_spec("flash_attn") is None:
        lacks = "the package flash-attn (pip install flash-attn)" + (f" and {lacks}" if lacks else "")
    if lacks:
        raise ModelError(f"attention='flash_attention_2' needs {lacks}; use attention='sdpa', or leave it out")


def _commit(source: str | Path, revision: str | None) -> str:
    """The commit to load all files from, so that they belong together; "" for a folder."""
    if isinstance(source, Path):
        return ""
    check_reachable(source, hub.is_cached(source, revision), revision)
    with hub.without_bars():
        return hub.find_commit(source, revision)


def _load(name: str, source: str | Path, head: int, *, revision: str | None, **options: Any) -> tuple[Any, Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    # False, not the default: that one asks on stdin whether to run the model's own code
    safe = {"trust_remote_code": False, "revision": revision}
    config = AutoConfig.from_pretrained(source, **safe)
    stored = config.dtype  # which loading overwrites
    _check_kind(name, config, head)
    tokenizer = AutoTokenizer.from_pretrained(source, **safe)
    if head:
        config.num_labels = head
        config.problem_type = "regression" if head == 1 else "single_label_classification"
    auto = AutoModelForSequenceClassification if head else AutoModelForCausalLM
    model, info = auto.from_pretrained(
        source, config=config, use_safetensors=True, ignore_mismatched_sizes=bool(head), output_loading_info=True,
        **safe, **options,
    )  # fmt: skip
    model._stored_dtype = stored
    return model, tokenizer, info


def _check_kind(name: str, config: Any, head: int) -> None:
    """Raise :class:`ModelError` where transformers has no such model, or would load something else than asked for."""
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    if head:
        if type(config) not in auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            raise ModelError(
                f"model={name!r}: transformers has no classifier for the type {kind!r}; choose another model"
            )
        return
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})  # for the loader to refuse
    causal = type(config) in auto.MODEL_FOR_CAUSAL_LM_MAPPING or own_code
    # an encoder loads as a causal model too, but each token would see those after it
    turned = getattr(config, "is_decoder", False) or getattr(config, "causal", False) or config.is_encoder_decoder
    if not causal or (kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not turned):
        raise ModelError(
            f"model={name!r} is no causal language model (its type is {kind!r}), so it cannot write an answer; "
            "choose a classification task for it, or another model"
        )


def _check_loaded(name: str, model: Any, info: Any, head: int) -> None:
    """Only a classifier's head may have been left to chance."""
    missing = sorted(key for key in info["missing_keys"] if not (head and _is_head(model, key)))
    if missing:
        raise ModelError(
            f"the weights of {name!r} lack {len(missing)} tensors, {missing[0]} first; they would start at random: "
            "download or save the model again"
        )
    for key, stored, expected in sorted(info["mismatched_keys"]):
        if not _is_head(model, key):
            raise ModelError(
                f"{key} of {name!r} has the shape {tuple(stored)}, and its config says {tuple(expected)}; "
                "download or save the model again"
            )


def _is_head(model: Any, key: str) -> bool:
    """Whether a tensor is outside the body of a classifier, or of the pooler that belongs to its head."""
    body = model.base_model_prefix
    return hasattr(model, body) and (not key.startswith(f"{body}.") or ".pooler." in key)


def check_complete(name: str, model: Any, tokenizer: Any, head: int = 0) -> None:
    """Raise :class:`ModelError` for a tokenizer that does not fit the model, and for NaN in a weight."""
    if tokenizer.eos_token_id is None and not head:
        raise ModelError(f"the tokenizer of {name!r} has no end-of-text token; set eos_token in tokenizer_config.json")
    if tokenizer.eos_token_id is None and tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of {name!r} has no padding token; set pad_token in tokenizer_config.json")
    rows = model.get_input_embeddings().weight.shape[0]  # often more than tokens, for the sake of round numbers
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens and the model {rows}; "
            "put the tokenizer beside it that it was trained with"
        )
    for where, weight in model.named_parameters():
        if not _is_finite(weight.detach()):
            raise ModelError(f"{where} of {name!r} holds NaN or infinity; download or save the model again")


def _is_finite(weight: Any) -> bool:
    # piece by piece: the comparison needs several times the memory of what it looks at
    return all(bool(piece.isfinite().all()) for piece in weight.flatten().split(2**24))


def _explain(name: str, source: str | Path, error: Exception, revision: str | None, attention: str | None) -> str:
    text = str(error)
    first = " ".join(text.split())[:200] or type(error).__name__
    if "trust_remote_code" in text or "custom code" in text:
        return f"model={name!r} needs code of its own, which is never run here; choose a model that transformers knows"
    if attention is not None and isinstance(error, ValueError | ImportError) and "ttention" in text:
        return f"attention={attention!r} does not work for {name!r} ({first[:100]}); use 'eager', or leave it out"
    if isinstance(source, Path):
        if type(error).__name__ == "SafetensorError":
            return f"a weight file in {source} is truncated or not safetensors ({first}); download or save it again"
        return f"the folder {source} cannot be loaded ({first}); save model and tokenizer with save_pretrained"
    if type(error).__name__ == "SafetensorError":
        return (
            f"a weight file of {name!r} is truncated or not safetensors ({first}); choose another revision, or delete "
            "the model from the hub's cache and try again"
        )
    if "cannot be loaded with `safetensors`" in text:
        return f"model={name!r} has no safetensors weights, and pickles can run code when opened; choose another model"
    return hub.explain(source, error, revision)


@contextmanager
def _quiet(loading: bool, reports: bool) -> Iterator[None]:
    """No bars while weights that are here are loaded: they would be the first thing every notebook prints.

    ``loading``: whether they are here, for a download should have its bar; ``reports``: whether transformers
    may list what it did not find, which a new head is meant to be.
    """
    from transformers.utils import logging

    had_bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    if loading:
        logging.disable_progress_bar()
    if not reports:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()


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
            place = shipped_folder("data") / EMBEDDED if source == EMBEDDED else source
            config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        with LOADING_LOCK, torch.device("meta"):
            return AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, …
        first = " ".join(str(error).split())[:200]
        name = type(source).__name__ if isinstance(source, PretrainedConfig) else repr(str(source))
        raise ModelError(
            f"no architecture can be built from {name} ({first}); give a transformers config, a folder with a "
            "config.json, or the id of a model on the hub"
        ) from error
