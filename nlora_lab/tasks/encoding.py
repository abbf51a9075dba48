"""From a task's rows to token ids and labels, each example alone or packed one behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from nlora_lab.tasks.task import Task

IGNORED = -100  # the label that cross-entropy leaves out
OPEN = 64  # packed rows that still take examples: with more, packing many examples takes minutes


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids: ``cut`` of the examples were too long, and ``longest`` is the longest row in tokens.

    Each row has ``input_ids`` and ``labels``: a list, IGNORED where nothing is asked, or a classifier's single one.
    Beside them it may have ``token_type_ids`` and, where it is packed, ``position_ids``.
    """

    rows: list[dict[str, Any]] = field(repr=False)
    cut: int
    longest: int

    def __len__(self) -> int:
        return len(self.rows)


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
    """Token ids and labels of every row: ``<s> prompt target </s>``, the prompt's labels ignored."""
    prompts = tokenizer(list(rows["prompt"]))["input_ids"]
    targets = tokenizer(list(rows["target"]), add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [_example(p, [*t, *end]) for p, t in zip(prompts, targets, strict=True)]


def _example(prompt: list[int], target: list[int]) -> dict[str, list[int]]:
    return {"input_ids": [*prompt, *target], "labels": [IGNORED] * len(prompt) + target}


def encode_task(
    rows: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> Encoded:
    """The rows of a task as its kind takes them, none longer than ``max_length`` tokens; ``None`` cuts nothing.

    Of text that is too long the prompt loses its beginning, all but ``<s>``, so that the target stays; only of a target
    that is too long by itself the end is cut, ``</s>`` with it. With a chat template the target stands without white
    space around it. What a classifier reads is cut by the tokenizer.

    Raises :class:`InputError` for a ``max_length`` that leaves no room, and for a target without any token.
    """
    if max_length is not None and max_length < 2:
        raise InputError(f"max_length={max_length} leaves no room for a target; try max_length=512")
    if task.head:
        return _classified(rows, tokenizer, max_length)
    chat = uses_chat(task, tokenizer)
    prompts = prompt_ids(list(rows["prompt"]), tokenizer, chat)
    texts = [text.strip() if chat else text for text in rows["target"]]
    targets = tokenizer(texts, add_special_tokens=False)["input_ids"]
    examples, cut = [], 0
    for number, (prompt, target) in enumerate(zip(prompts, targets, strict=True), start=1):
        if not target:
            raise InputError(
                f"task {task.name!r}, row {number}: the target {texts[number - 1]!r} has no token to learn; "
                "leave the row out, or give it a target"
            )
        target = [*target, tokenizer.eos_token_id]
        if max_length is not None and len(prompt) + len(target) > max_length:
            cut += 1
            prompt = last_tokens(prompt, max(1, max_length - len(target)), tokenizer)
            target = target[: max_length - len(prompt)]
        examples.append(_example(prompt, target))
    return _whole(examples, cut)


def _whole(rows: list[dict[str, Any]], cut: int) -> Encoded:
    return Encoded(rows, cut, max((len(row["input_ids"]) for row in rows), default=0))


def _classified(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Encoded:
    texts, pairs = list(rows["text"]), list(rows["pair"])
    paired = any(pairs)
    made: dict[str, list[list[int]]] = dict(tokenizer(texts, pairs if paired else None))
    names = [name for name in ("input_ids", "token_type_ids") if name in made]
    encoded: list[dict[str, Any]] = [{name: made[name][i] for name in names} for i in range(len(texts))]
    long = [i for i, row in enumerate(encoded) if max_length is not None and len(row["input_ids"]) > max_length]
    for i in long:
        short = tokenizer(texts[i], pairs[i] if paired else None, truncation=True, max_length=max_length)
        encoded[i] = {name: list(short[name]) for name in names}
    for i, (row, label) in enumerate(zip(encoded, rows["label"], strict=True), start=1):
        if not row["input_ids"]:
            raise InputError(f"row {i}: the text {texts[i - 1]!r} has no token to read; leave the row out")
        row["labels"] = label
    return _whole(encoded, len(long))


def uses_chat(task: Task, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts of ``task`` go through a chat template."""
    return task.chat and getattr(tokenizer, "chat_template", None) is not None


def as_asked(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, chat: bool) -> list[str]:
    """The prompts as text that the model sees, without the ``<s>`` that the tokenizer adds to those of no chat."""
    if not chat:
        return list(prompts)
    talks = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) for talk in talks]


def prompt_ids(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, chat: bool = False, limit: int | None = None
) -> list[list[int]]:
    """Token ids of every prompt, ``<s>`` once at the start; of a longer one than ``limit`` the last so many."""
    # a template writes <s> itself, and the tokenizer would put another before it
    ids = tokenizer(as_asked(prompts, tokenizer, chat), add_special_tokens=not chat)["input_ids"]
    return [list(one) if limit is None else last_tokens(one, limit, tokenizer) for one in ids]


def last_tokens(ids: list[int], count: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The last ``count`` of ``ids``, counting in ``<s>`` at the start, which stays if there is room."""
    if len(ids) <= count:
        return list(ids)
    if count > 1 and ids[0] == tokenizer.bos_token_id:
        return [ids[0], *ids[1 - count :]]
    return list(ids[-count:])


def pack(encoded: Encoded, max_length: int) -> Encoded:
    """The examples one behind the other in rows of at most ``max_length`` tokens: nearly no padding.

    Each goes, in order, to the first of the last 64 rows that has room. ``position_ids`` begin anew with each, which is
    how the model knows them apart, and its first token's label is ignored: the example before does not foretell it.

    Raises :class:`InputError` for an example longer than that, and for those of a classifier.
    """
    rows: list[dict[str, Any]] = []
    free: list[int] = []  # tokens left in each row
    for number, example in enumerate(encoded.rows, start=1):
        ids, labels = example["input_ids"], example["labels"]
        if not isinstance(labels, list):
            raise InputError("a classifier reads one example a row; use batching='length' in place of 'packed'")
        if len(ids) > max_length:
            raise InputError(
                f"example {number} has {len(ids)} tokens and a packed row {max_length}; "
                f"encode with max_length={max_length}, or pack into longer rows"
            )
        opened = range(max(0, len(rows) - OPEN), len(rows))
        place = next((i for i in opened if free[i] >= len(ids)), len(rows))
        if place == len(rows):
            rows.append({"input_ids": [], "labels": [], "position_ids": []})
            free.append(max_length)
        free[place] -= len(ids)
        row = rows[place]
        row["input_ids"] += ids
        row["labels"] += [IGNORED, *labels[1:]]
        row["position_ids"] += range(len(ids))
    return _whole(rows, encoded.cut)
