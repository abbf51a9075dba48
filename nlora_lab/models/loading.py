"""Loading a language model: the embedded one, a local folder, or an id on the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError, ModelError
from nlora_lab.core.files import shipped_folder
from nlora_lab.core.validation import check_choice, check_whole_number
from nlora_lab.models import hub
from nlora_lab.models.heads import order_head, stored_classes
from nlora_lab.models.names import ATTENTIONS, CONFIG, EMBEDDED, READ, SHIPPED, check_file, check_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16")
POSITIONS = ("max_position_embeddings", "max_seq_len")  # where configs say how many tokens a model has places for
LOADING_LOCK = threading.RLock()
"""Held while a model is built: transformers then switches global state, and two models at once would break both."""


def load_model(
    name: str = EMBEDDED,
    *,
    head: int = 0,
    labels: Sequence[str] = (),
    revision: str | None = None,
    dtype: str | None = None,
    attention: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model with its tokenizer.

    The model is on the CPU and in evaluation mode. Code from the hub is never run.

    Args:
        name: "embedded", "larger", a folder in the layout of the hub, or a hub id.
        head: 0 for a causal language model. Any other number gives a classifier with that many outputs, where 1 is a
            regression. Only the head of a classifier may be missing from the weights, or have another size in them. It
            then starts at random, so seed torch before.
        labels: the names of the classes, in the order of the outputs. A head whose config names the same classes in
            another order is brought into this order. Empty leaves the head as it is.
        revision: the branch, tag or commit of a model on the hub (see ``revision_of``). ``None`` takes its newest
            state.
        dtype: "float32" or "bfloat16". ``None`` means float32.
        attention: one of ``ATTENTIONS``. ``None`` takes the choice of transformers.

    Returns:
        The model and its tokenizer.

    Raises:
        InputError: an option is not known.
        ModelError: the model cannot be loaded. The message gives the reason and a remedy.
    """
    import torch

    source = check_model(name)
    hub.check_revision(revision, source)
    head = _check_options(head, dtype, attention)
    _check_labels(head, labels)
    try:
        commit = _find_commit(source, revision)
        with LOADING_LOCK, quiet(bar=bool(commit) and not hub.is_cached(str(source), commit), reports=not head):
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
    if labels:
        order_head(model, model._stored_classes, labels)
    model._has_new_head = bool(info["missing_keys"] or info["mismatched_keys"])  # all others are errors
    model._drawn = sorted({key.rpartition(".")[0] for key in info["missing_keys"]})
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not head and getattr(model, "generation_config", None) is not None:
        _check_end_tokens(model)
        model.generation_config.eos_token_id = end_tokens(model, tokenizer)  # an export carries them
    if not head and model.loss_type is None:
        model.loss_type = "ForCausalLM"  # transformers assumes this too, but with a warning (for GPT-2, for example)
    if head:  # the classifier of a causal model looks for the last token before the padding
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
    limits = [config_limit(model.config, tokenizer)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(len(module.weight) - module.padding_idx - 1)  # RoBERTa's start after the padding's
    return min((limit for limit in limits if limit), default=None)


def config_limit(config: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Find how many tokens a model has positions for, by its config and its tokenizer alone.

    Args:
        config: the config of the model.
        tokenizer: its tokenizer.

    Returns:
        The smaller of the limits that are known, in tokens; ``None`` if none is.

    Raises:
        InputError: a limit cannot be one. The message names its field.
    """
    limits = []
    named = {name: getattr(config, name, None) for name in POSITIONS}
    for name, limit in {**named, "model_max_length": tokenizer.model_max_length}.items():
        # no limit is written as 1e30 in transformers, as -1 in XLNet, and as 0 elsewhere
        if limit is None or limit in (0, -1) or (isinstance(limit, int | float) and limit > 1e9):
            continue
        limits.append(check_whole_number(f"{name} of the model", limit, 1, remedy="correct its config"))
    return min(limits, default=None)


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> int | list[int]:
    """Find the tokens that end an answer: that of the tokenizer, which training writes, and those of the model.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.

    Returns:
        The token id, or a sorted list of several.
    """
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list | tuple) else [own]
    ends = sorted({int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None})
    return ends[0] if len(ends) == 1 else ends


def _check_end_tokens(model: Any) -> None:
    """Check the end tokens in a generation config: transformers does not. The vocabulary may lack one of them."""
    own = model.generation_config.eos_token_id
    for token in own if isinstance(own, list | tuple) else [] if own is None else [own]:
        check_whole_number("eos_token_id in generation_config.json", token, 0, remedy="correct the file")


def revision_of(model: Any) -> str:
    """Return the commit that a model was loaded from.

    Args:
        model: a model from ``load_model``.

    Returns:
        The commit hash on the hub; "" for a local model.
    """
    return str(getattr(getattr(model, "config", None), "_commit_hash", None) or "")


def _check_options(head: Any, dtype: Any, attention: Any) -> int:
    remedy = "0 means a language model, and any other number a classifier with that many outputs"
    outputs = check_whole_number("head", head, 0, remedy=remedy)
    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
    if attention is not None:
        check_choice("attention", attention, ATTENTIONS)
    if attention == "flash_attention_2":
        _check_flash_attention()
    return outputs


def _check_labels(head: int, labels: Sequence[str]) -> None:
    if labels and len(labels) != head:
        raise InputError(
            f"labels={list(labels)!r} are {len(labels)} names for head={head} outputs; name each output once"
        )


def _check_flash_attention() -> None:
    # without the package transformers would fetch a compiled kernel from the hub and run it
    import torch

    missing = "a CUDA card" if not torch.cuda.is_available() else None
    if importlib.util.find_spec("flash_attn") is None:
        missing = "the package flash-attn (pip install flash-attn)" + (f" and {missing}" if missing else "")
    if missing:
        raise ModelError(f"attention='flash_attention_2' needs {missing}; use attention='sdpa', or leave it out")


def _find_commit(source: str | Path, revision: str | None) -> str:
    """The commit to load all files from, so that they belong together; "" for a folder."""
    if isinstance(source, Path):
        return ""
    hub.check_reachable(source, revision, in_cache=hub.is_cached(source, revision))
    with hub.without_bars():
        return hub.find_commit(source, revision)


def _load(name: str, source: str | Path, head: int, *, revision: str | None, **options: Any) -> tuple[Any, Any, Any]:
    """The model, its tokenizer, and what transformers reports about the weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    # False, not the default, which asks on stdin whether to run the model's own code
    safe = {"trust_remote_code": False, "revision": revision}
    _check_cached(source, READ, revision)
    config = AutoConfig.from_pretrained(source, **safe)
    stored, classes = config.dtype, stored_classes(source, **safe) if head else ()  # which loading overwrites
    _check_type(name, config, head)
    tokenizer = AutoTokenizer.from_pretrained(source, **safe)
    if head:
        config.num_labels = head
        config.problem_type = "regression" if head == 1 else "single_label_classification"
    auto = AutoModelForSequenceClassification if head else AutoModelForCausalLM
    model, info = auto.from_pretrained(
        source, config=config, use_safetensors=True, ignore_mismatched_sizes=bool(head), output_loading_info=True,
        **safe, **options,
    )  # fmt: skip
    model._stored_dtype, model._stored_classes = stored, classes
    return model, tokenizer, info


def _check_cached(source: str | Path, names: Iterable[str], revision: str | None = None) -> None:
    """Check files of a folder, or those of a hub id that are in the cache."""
    for name in names:
        file = source / name if isinstance(source, Path) else hub.cached_file(source, name, revision)
        if file is not None:
            check_file(file)


def _check_type(name: str, config: Any, head: int) -> None:
    """Check that transformers has a model of this type, and would load the requested kind of it."""
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    if head:
        if type(config) not in auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            raise ModelError(
                f"model={name!r}: transformers has no classifier for the type {kind!r}; choose another model"
            )
        return
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})  # the loader refuses it
    causal = type(config) in auto.MODEL_FOR_CAUSAL_LM_MAPPING or own_code
    # an encoder loads as a causal model too, but each token would see the tokens after it
    decoder = getattr(config, "is_decoder", False) or getattr(config, "causal", False) or config.is_encoder_decoder
    if not causal or (kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decoder):
        raise ModelError(
            f"model={name!r} is not a causal language model (its type is {kind!r}), so it cannot write an answer; "
            "choose a classification task for it, or another model"
        )


def _check_loaded(name: str, model: Any, info: Any, head: int) -> None:
    """Check that every tensor came from the weights, except those of a classifier's head."""
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
    """Whether a tensor lies outside the body of a classifier, or in the pooler that belongs to its head."""
    body = model.base_model_prefix
    return hasattr(model, body) and (not key.startswith(f"{body}.") or ".pooler." in key)


def check_complete(name: str, model: Any, tokenizer: Any, head: int = 0) -> None:
    """Check that the tokenizer fits the model and that every weight is finite.

    Args:
        name: the name of the model, for messages.
        model: the model.
        tokenizer: its tokenizer.
        head: as for ``load_model``.

    Raises:
        ModelError: a special token is missing, the tokenizer has more tokens than the model, or a weight holds NaN or
            infinity.
    """
    if tokenizer.eos_token_id is None and not head:
        raise ModelError(f"the tokenizer of {name!r} has no end-of-text token; set eos_token in tokenizer_config.json")
    if tokenizer.eos_token_id is None and tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of {name!r} has no padding token; set pad_token in tokenizer_config.json")
    rows = model.get_input_embeddings().weight.shape[0]  # often more than tokens, rounded up
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens and the model {rows}; "
            "replace it by the tokenizer that the model was trained with"
        )
    for key, weight in model.named_parameters():
        if not _is_finite(weight.detach()):
            raise ModelError(f"{key} of {name!r} holds NaN or infinity; download or save the model again")


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
def quiet(bar: bool, reports: bool) -> Iterator[None]:
    """Keep transformers from printing while a model is loaded or saved.

    Args:
        bar: whether to show progress bars. A download should have one. Loading from the disk should not, because the
            bar would be the first output of every notebook.
        reports: whether transformers may list the weights that it did not find. A new head is always among them.
    """
    from transformers.utils import logging

    had_bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    if not bar:
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
    """Build the model of a config without its output head, on the meta device: shapes, but no weights.

    Args:
        source: a transformers config, "embedded", "larger", a folder with a config.json, or a hub id.

    Returns:
        The model.

    Raises:
        ModelError: the config does not exist, or it needs code of its own.
    """
    import torch
    from transformers import AutoConfig, AutoModel, PretrainedConfig

    if not isinstance(source, PretrainedConfig | str | Path):
        raise ModelError(f"{type(source).__name__} is not a config, a folder or a hub id; give one of these")
    config = source
    try:
        if not isinstance(source, PretrainedConfig):
            place = shipped_folder("data") / str(source) if source in SHIPPED else source
            _check_cached(Path(place) if Path(place).is_dir() else str(place), [CONFIG])
            config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        with LOADING_LOCK, torch.device("meta"):
            return AutoModel.from_config(config, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, …
        first = " ".join(str(error).split())[:200]
        label = type(source).__name__ if isinstance(source, PretrainedConfig) else repr(str(source))
        raise ModelError(
            f"no architecture can be built from {label} ({first}); give a transformers config, a folder with a "
            "config.json, or the id of a model on the hub"
        ) from error
