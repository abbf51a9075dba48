"""Answers by vLLM, which generates much faster than transformers; it has to be installed beside this package.

Not tried on a card so far: the tests put a stand-in in vLLM's place. To measure a fine-tuned model by it::

    prompts = asked(task, tokenizer, "test")
    said = generate("model/", "adapter/", prompts, max_new_tokens=400)
    accuracy(marked(task, task.test, said))
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlora_lab.core.errors import InputError


def generate(
    model_folder: str | Path, adapter_folder: str | Path | None, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """The likeliest continuation of each prompt, up to the end token or ``max_new_tokens``.

    ``adapter_folder``: a LoRA adapter as PEFT saves it; ``None`` is the model alone. Source: Kwon et al., "Efficient
    Memory Management for Large Language Model Serving with PagedAttention", SOSP 2023.

    Raises :class:`InputError` where vLLM is not installed, and for an adapter of a kind that vLLM does not know.
    """
    try:
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        raise InputError(f"vLLM cannot be loaded ({error}); run 'pip install vllm', or leave the engine out") from error

    options: dict[str, Any] = {}
    if adapter_folder is not None:
        options = {"enable_lora": True, "max_lora_rank": _rank(Path(adapter_folder))}
    engine = LLM(model=str(model_folder), trust_remote_code=False, **options)
    request = None if adapter_folder is None else LoRARequest("adapter", 1, str(adapter_folder))
    # a chat template writes the start token itself, and vLLM's tokenizer would put another before it
    start = getattr(engine.get_tokenizer(), "bos_token", None) or ""
    outputs = engine.generate(
        [prompt.removeprefix(start) for prompt in prompts],
        SamplingParams(temperature=0.0, max_tokens=max_new_tokens),
        lora_request=request,
    )
    return [output.outputs[0].text for output in outputs]


def _rank(folder: Path) -> int:
    """The rank of an adapter, which vLLM must know before it loads it; one of its own steps, not below it."""
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind, rank = config["peft_type"], int(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be read ({error}); save the adapter with save_pretrained") from error
    if kind != "LORA":
        raise InputError(f"{folder} is a {kind} adapter, and vLLM knows LoRA only; convert it with save_as_lora")
    steps = (8, 16, 32, 64, 128, 256, 320, 512)
    if rank > steps[-1]:
        raise InputError(f"{folder} has rank {rank}, and vLLM takes {steps[-1]} at most; merge it into the model")
    return next(step for step in steps if step >= rank)
