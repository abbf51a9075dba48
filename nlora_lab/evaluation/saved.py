"""Measuring a model as it stands, or with a saved adapter: no training, and vLLM where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nlora_lab.core.devices import find_device
from nlora_lab.core.errors import InputError
from nlora_lab.core.files import expand_path
from nlora_lab.core.validation import check_choice
from nlora_lab.evaluation.scoring import Answer, accuracy, longest_answer, mark_answers, measure, task_prompts
from nlora_lab.models.loading import load_model
from nlora_lab.models.names import check_model
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
    """The answers of ``model`` to the test items of ``task``, and the task's measures of them.

    ``model``: as for :func:`nlora_lab.load_model`. ``adapter``: a folder that ``save_pretrained`` or
    :func:`nlora_lab.save_adapter` wrote. ``shots``: so many worked examples before each question. ``engine``: "auto"
    takes vLLM where it is installed, there is a card, and answers are text; it loads plain LoRA adapters alone
    (:func:`nlora_lab.save_as_lora`).

    Raises :class:`nlora_lab.InputError` for an unknown engine, a folder without an adapter, and what the model, the
    task or vLLM cannot do.
    """
    check_choice("engine", engine, ENGINES)
    folder = None if adapter is None else expand_path(adapter)
    if folder is not None and not (folder / "adapter_config.json").is_file():
        raise InputError(
            f"adapter={str(adapter)!r} holds no adapter_config.json; give a folder that save_pretrained wrote"
        )
    place = find_device(device)
    if engine == "auto":
        quick = find_spec("vllm") is not None and place.kind == "cuda" and task.kind == "text"
        engine = "vllm" if quick else "transformers"
    if engine == "vllm":
        return _by_vllm(model, task, folder, shots, revision)
    tuned, tokenizer = load_model(
        model, head=task.head, revision=revision, dtype="bfloat16" if place.precision == "bf16" else None
    )
    if folder is not None:
        tuned = _with(tuned, folder)
    return measure(tuned.to(place.kind).eval(), tokenizer, task, shots=shots)


def _with(base: Any, folder: Path) -> Any:
    from peft import PeftModel

    import nlora_lab.adapters  # noqa: F401 - makes this package's adapters known to PEFT

    try:
        return PeftModel.from_pretrained(base, str(folder))
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"the adapter {str(folder)!r} does not fit this model ({reason})") from error


def _by_vllm(
    model: str, task: Task, folder: Path | None, shots: int, revision: str | None
) -> tuple[list[Answer], dict[str, float]]:
    from transformers import AutoTokenizer

    from nlora_lab.evaluation.vllm_engine import generate

    if task.kind != "text":
        raise InputError(f"task {task.name!r} is not answered in words, which is what vLLM does; engine='transformers'")
    if revision is not None:
        raise InputError(f"revision={revision!r}: vLLM takes a folder or the main branch; download that revision")
    source = check_model(model)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    prompts = task_prompts(task, tokenizer, "test", shots=shots)
    said = generate(source, folder, prompts, longest_answer(tokenizer, task.test))
    given = mark_answers(task, task.test, said)
    return given, {"accuracy": accuracy(given)}
