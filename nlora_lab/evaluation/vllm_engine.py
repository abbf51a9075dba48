"""Answers by vLLM, which generates much faster than transformers. Install it beside this package.

The tests replace vLLM by a stand-in. It has not been run on a card yet. To measure a fine-tuned model with it::

    prompts = task_prompt_ids(task, tokenizer, task.test, shots=0, new_tokens=400, max_length=None)
    texts = generate_texts("model/", "adapter/", prompts, 400, tokenizer.eos_token_id)
    accuracy(mark_answers(task, task.test, texts))

Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import whole_number

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM allows for max_lora_rank


def generate_texts(
    model_folder: str | Path,
    adapter_folder: str | Path | None,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    end_token: int,
) -> list[str]:
    """Continue prompts with the likeliest tokens.

    Args:
        model_folder: a folder with a model, or a hub id.
        adapter_folder: a folder with a LoRA adapter as PEFT saves it. ``None`` uses the model alone.
        prompts: the token ids to continue. The tokenizer of vLLM would put its own special tokens around a text.
        max_new_tokens: the largest number of new tokens. A continuation also ends at an end token.
        end_token: the end token of the tokenizer. vLLM knows those of the model.

    Returns:
        The continuation of each prompt.

    Raises:
        InputError: vLLM is not installed, or the adapter is of a kind or a rank that vLLM cannot load.
    """
    try:
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        raise InputError(f"vLLM cannot be loaded ({error}); run 'pip install vllm', or leave the engine out") from error

    options: dict[str, Any] = {}
    if adapter_folder is not None:
        options = {"enable_lora": True, "max_lora_rank": _allowed_rank(Path(adapter_folder))}
    engine = LLM(model=str(model_folder), trust_remote_code=False, **options)
    request = None if adapter_folder is None else LoRARequest("adapter", 1, str(adapter_folder))
    outputs = engine.generate(
        [{"prompt_token_ids": list(prompt)} for prompt in prompts],
        SamplingParams(temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=[end_token]),
        lora_request=request,
    )
    return [output.outputs[0].text for output in outputs]


def _allowed_rank(folder: Path) -> int:
    """Return the smallest rank that vLLM allows and that is not below the rank of the adapter."""
    from nlora_lab.adapters.saved import read_settings

    settings = read_settings(folder)
    kind, rank = settings["peft_type"], whole_number(settings.get("r"))
    if rank is None or rank < 1:
        raise InputError(f"{folder} has no rank, r={settings.get('r')!r}; save the adapter with save_pretrained")
    if kind != "LORA":
        raise InputError(f"{folder} is a {kind} adapter, and vLLM loads LoRA only; convert it with save_as_lora")
    if rank > LORA_RANKS[-1]:
        raise InputError(
            f"{folder} has rank {rank}, and vLLM takes {LORA_RANKS[-1]} at most; merge the adapter into the model"
        )
    return next(allowed for allowed in LORA_RANKS if allowed >= rank)
