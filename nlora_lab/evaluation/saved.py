"""Measuring a model as it is, or with a saved adapter, without training."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nlora_lab.core.devices import find_device
from nlora_lab.core.documents import read_json
from nlora_lab.core.errors import InputError
from nlora_lab.core.files import expand_path
from nlora_lab.core.validation import check_choice
from nlora_lab.evaluation.generation import longest_answer
from nlora_lab.evaluation.scoring import Answer, accuracy, mark_answers, measure, task_prompt_ids
from nlora_lab.evaluation.vllm_engine import generate_texts
from nlora_lab.models.heads import class_names, class_order, order_logits
from nlora_lab.models.loading import config_limit, load_model, position_limit
from nlora_lab.models.names import CONFIG, check_config, check_model
from nlora_lab.tasks.task import Task

ENGINES = ("auto", "transformers", "vllm")


def measure_saved(
    model: str,
    task: Task,
    adapter: str | Path | None = None,
    *,
    shots: int = 0,
    revision: str | None = None,
    device: str | None = None,
    engine: str = "auto",
) -> tuple[list[Answer], dict[str, float]]:
    """Measure a model, alone or with a saved adapter, on the test rows of a task.

    Args:
        model: "embedded", "larger", a folder or a hub id, as for ``nl.load_model``.
        task: the task.
        adapter: a folder that ``nl.save_adapter`` or ``save_pretrained`` wrote.
        shots: put this many worked training examples before each prompt.
        revision: a branch, a tag or a commit of the model on the hub.
        device: "cuda", "mps" or "cpu". By default the best device of this machine.
        engine: "transformers", "vllm" or "auto". "auto" takes vLLM if it is installed, there is a CUDA card, and the
            answers are text. vLLM loads plain LoRA adapters only, such as ``nl.save_as_lora`` writes.

    Returns:
        The answers, and the measures of the task by name.

    Raises:
        InputError: the engine is not known, the folder holds no adapter, or the model, the task or vLLM cannot be
            used together.
    """
    check_choice("engine", engine, ENGINES)
    folder = None if adapter is None else expand_path(adapter)
    if folder is not None:
        from nlora_lab.adapters.saved import read_adapter

        read_adapter(folder)  # before the model is loaded
    target = find_device(device)
    if engine == "auto":
        can_use_vllm = find_spec("vllm") is not None and target.kind == "cuda" and task.kind == "text"
        engine = "vllm" if can_use_vllm else "transformers"
    if engine == "vllm":
        return _measure_with_vllm(model, task, folder, shots, revision)
    dtype = "bfloat16" if target.precision == "bf16" else None
    labels = task.labels if task.kind == "classes" else ()
    saved = () if folder is None else saved_classes(folder)
    # an adapter was trained on outputs in the order that stands beside it, or in the model's own
    in_order = labels if folder is None else saved if len(saved) == task.head else ()
    loaded, tokenizer = load_model(model, head=task.head, labels=in_order, revision=revision, dtype=dtype)
    names = saved or loaded._stored_classes
    order = class_order(names, labels) if names else None
    if labels and names and order is None:
        raise InputError(
            f"model={model!r} tells apart {', '.join(names)}, and the task {task.name!r} asks for "
            f"{', '.join(labels)}; give a model that was trained for this task, or an adapter"
        )
    if folder is None and task.head and loaded._has_new_head:
        raise InputError(
            f"model={model!r} has no trained head with {task.head} outputs for the task {task.name!r}, and a new one "
            "is random; give a model that was trained for this task, or an adapter"
        )
    if folder is not None:
        from nlora_lab.adapters.saved import load_adapter

        loaded = load_adapter(loaded, folder)
        if order is not None:
            order_logits(loaded, order)
        _check_output(loaded, tokenizer, str(adapter))
    positions = position_limit(loaded, tokenizer)  # as a run measures itself
    return measure(loaded.to(target.kind).eval(), tokenizer, task, shots=shots, max_length=positions)


def _check_output(model: Any, tokenizer: Any, adapter: str) -> None:
    """Check that the model computes numbers: the product of finite factors may be too large."""
    import torch

    with torch.no_grad():
        ends = (tokenizer.eos_token_id, tokenizer.sep_token_id, 0)  # some classifiers read at the end token
        logits = model(input_ids=torch.tensor([[next(e for e in ends if e is not None)]])).logits
    if not bool(logits.isfinite().all()):
        raise InputError(f"with the adapter {adapter!r} the model computes NaN or infinity; train the adapter again")


def saved_classes(adapter: Path) -> tuple[str, ...]:
    """Return the classes of the head that was saved with an adapter, by the config beside it. Empty without one."""
    if not os.path.lexists(adapter / CONFIG):
        return ()
    check_config(adapter / CONFIG)
    return class_names(read_json(adapter / CONFIG))


def _measure_with_vllm(
    model: str, task: Task, folder: Path | None, shots: int, revision: str | None
) -> tuple[list[Answer], dict[str, float]]:
    from transformers import AutoConfig, AutoTokenizer

    if task.kind != "text":
        raise InputError(
            f"engine='vllm' generates text, and the task {task.name!r} is not answered in text; "
            "use engine='transformers'"
        )
    if revision is not None:
        raise InputError(
            f"revision={revision!r}: vLLM takes a folder or the main branch; download the revision to a folder"
        )
    source = check_model(model)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    new_tokens = longest_answer(tokenizer, task.test)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    prompts = task_prompt_ids(task, tokenizer, task.test, shots, new_tokens, config_limit(config, tokenizer))
    texts = generate_texts(source, folder, prompts, new_tokens, int(tokenizer.eos_token_id))
    results = mark_answers(task, task.test, texts)
    return results, {"accuracy": accuracy(results)}
