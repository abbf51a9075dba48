"""From rows to token ids and labels: one example per row, or several examples packed into a row."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_whole_number

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from nlora_lab.tasks.task import Task

IGNORED = -100  # the label that cross-entropy leaves out
OPEN_ROWS = 64  # packed rows that still take examples: with more of them, packing many examples takes minutes
MARKER = "Vq7xT3kWz9LpB2"  # a prompt that no chat template contains
PRINTED_PART = re.compile(rf"""["']text["']\s*:\s*["']{MARKER}""")
SHORT_TEXTS = ("a", "0", "a 0")


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids.

    Each row has ``input_ids`` and ``labels``. The labels are a list with ``IGNORED`` outside the target, or the single
    label of a classifier. A row may also have ``token_type_ids``, and a packed row has ``position_ids``.

    Attributes:
        rows: the rows.
        cut: how many examples were too long and were cut.
        longest: the length of the longest row in tokens.
    """

    rows: list[dict[str, Any]] = field(repr=False)
    cut: int
    longest: int

    def __len__(self) -> int:
        return len(self.rows)


# --- prompts ---


def few_shot(task: Task, k: int) -> str:
    """Return worked examples to put before a prompt. Base models are usually evaluated this way.

    Args:
        task: a task that is answered in text or by a choice.
        k: how many of the first training rows to use.

    Returns:
        Prompt and target of each row, followed by a blank line. "" for ``k`` = 0.

    Raises:
        InputError: the task is answered by a classification head, or ``k`` is not a number from 0 to the training rows.
    """
    if k and task.head:
        raise InputError(f"shots={k}: {task.name} is answered by a classification head, which takes no examples; use 0")
    rows = len(task.train)
    k = check_whole_number("shots", k, 0, rows, limit=f"{rows}, the number of training rows")
    return "".join(f"{row['prompt']}{row['target']}\n\n" for row in task.train.select(range(k)))


def uses_chat(task: Task, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the prompts of ``task`` go through the chat template of the tokenizer."""
    return task.chat and getattr(tokenizer, "chat_template", None) is not None


def prompt_texts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, chat: bool) -> list[str]:
    """Return the prompts as the model sees them. With ``chat``, the chat template is applied, which adds ``<s>``.

    Raises:
        InputError: the chat template cannot be applied, or it loses the prompt.
    """
    if not chat:
        return list(prompts)
    # a prompt may occur in the words of the template itself, and the marker cannot
    form, _ = _with_template(MARKER, tokenizer, (_as_text, _as_parts))
    return [_with_template(prompt, tokenizer, (form,))[1] for prompt in prompts]


def _as_text(prompt: str) -> str:
    return prompt


def _as_parts(prompt: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": prompt}]


def _with_template(
    prompt: str, tokenizer: PreTrainedTokenizerBase, forms: Sequence[Callable[[str], Any]]
) -> tuple[Callable[[str], Any], str]:
    """Apply a chat template to a prompt. Some templates take a message as text, and others as a list of parts.

    Returns:
        The first of the forms in which the prompt comes through, and the text.
    """
    reason = "it leaves out the prompt"
    for form in forms:
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": form(prompt)}], add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template is a program, and raises what it likes
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
            continue
        if not isinstance(text, str) or prompt.strip() not in text:
            continue
        if form is _as_text or not PRINTED_PART.search(html.unescape(text)):
            return form, text
        reason = "it prints the list of parts instead of their text"
    raise InputError(
        f"the chat template of the tokenizer cannot be used ({reason}); correct chat_template, or remove it to use "
        "plain prompts"
    )


def prompt_ids(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, chat: bool = False, limit: int | None = None
) -> list[list[int]]:
    """Return the token ids of the prompts, each with one ``<s>`` at its start and without ``</s>`` at its end.

    Args:
        prompts: the texts.
        tokenizer: the tokenizer of the model.
        chat: whether to apply the chat template.
        limit: keep only the last N tokens of a longer prompt.

    Returns:
        One list of token ids per prompt.
    """
    # a template writes <s> itself, and the tokenizer would put another before it
    ids = tokenizer(prompt_texts(prompts, tokenizer, chat), add_special_tokens=not chat)["input_ids"]
    after = 0 if chat else _tokens_after_a_text(prompts, ids, tokenizer)
    ids = [list(prompt[: len(prompt) - after]) for prompt in ids]
    return [prompt if limit is None else last_tokens(prompt, limit, tokenizer) for prompt in ids]


def _tokens_after_a_text(
    prompts: Sequence[str], ids: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> int:
    """Return how many special tokens the tokenizer puts after a text. After a prompt they would end the answer.

    The tokens of a prompt without special tokens show which of its ``ids`` are special. Usually the first prompt is
    enough. A prompt such as "<s>" leaves it open, and one without tokens too. Then the next one is asked.
    """
    more = ((text, tokenizer(text)["input_ids"]) for text in SHORT_TEXTS)
    possible: set[int] = set()
    for text, whole in chain(zip(prompts, ids, strict=True), more):
        alone = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        added = len(whole) - len(alone)
        after = {added - start for start in range(added + 1) if list(whole[start : start + len(alone)]) == alone}
        possible = possible & after or possible or after
        if len(possible) == 1:
            break
    return min(possible, default=0)


def last_tokens(ids: list[int], n: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the last ``n`` tokens. An ``<s>`` at the start stays if ``n`` is at least 2, and counts as one of them."""
    if len(ids) <= n:
        return list(ids)
    if n > 1 and ids[0] == tokenizer.bos_token_id:
        return [ids[0], *ids[1 - n :]]
    return list(ids[-n:])


# --- training rows ---


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
    """Encode rows of text as ``<s> prompt target </s>``. The labels of the prompt are ``IGNORED``."""
    prompts = prompt_ids(list(rows["prompt"]), tokenizer)
    targets = tokenizer(list(rows["target"]), add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [_example(p, [*t, *end]) for p, t in zip(prompts, targets, strict=True)]


def encode_task(
    rows: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> Encoded:
    """Encode rows of a task in the way that its kind needs.

    If an example of text is too long, its prompt loses tokens at the beginning, but not ``<s>``. Only if the target
    alone is too long, the target loses its end with ``</s>``. With a chat template, the target has no white space
    around it. The texts of a classifier are cut by the tokenizer.

    Args:
        rows: rows of the task.
        task: the task.
        tokenizer: the tokenizer of the model.
        max_length: the largest number of tokens in a row. ``None`` cuts nothing.

    Returns:
        The encoded rows, in order.

    Raises:
        InputError: ``max_length`` is smaller than 2, or a text has no token to learn from.
    """
    if max_length is not None:
        check_whole_number("max_length", max_length, 2, remedy="leave room for a target, such as max_length=512")
    if task.head:
        return _encode_for_head(rows, tokenizer, max_length)
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
    return _encoded(examples, cut)


def _example(prompt: list[int], target: list[int]) -> dict[str, list[int]]:
    return {"input_ids": [*prompt, *target], "labels": [IGNORED] * len(prompt) + target}


def _encoded(rows: list[dict[str, Any]], cut: int) -> Encoded:
    return Encoded(rows, cut, max((len(row["input_ids"]) for row in rows), default=0))


def _encode_for_head(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Encoded:
    texts, pairs = list(rows["text"]), list(rows["pair"])
    paired = any(pairs)
    columns: dict[str, list[list[int]]] = dict(tokenizer(texts, pairs if paired else None))
    names = [name for name in ("input_ids", "token_type_ids") if name in columns]
    encoded: list[dict[str, Any]] = [{name: columns[name][i] for name in names} for i in range(len(texts))]
    too_long = [i for i, row in enumerate(encoded) if max_length is not None and len(row["input_ids"]) > max_length]
    for i in too_long:
        short = tokenizer(texts[i], pairs[i] if paired else None, truncation=True, max_length=max_length)
        encoded[i] = {name: list(short[name]) for name in names}
    for number, (row, label) in enumerate(zip(encoded, rows["label"], strict=True), start=1):
        if not row["input_ids"]:
            raise InputError(f"row {number}: the text {texts[number - 1]!r} has no token to read; leave the row out")
        row["labels"] = label
    return _encoded(encoded, len(too_long))


def pack(encoded: Encoded, max_length: int) -> Encoded:
    """Put several examples into each row, one after the other, with almost no padding.

    Each example goes, in order, to the first of the last 64 rows that has room. Its ``position_ids`` begin at 0, which
    tells the model where an example begins. The label of its first token is ``IGNORED``, because the token before
    belongs to another example.

    Args:
        encoded: examples of text.
        max_length: the largest number of tokens in a row.

    Returns:
        The packed rows.

    Raises:
        InputError: an example is longer than a row, or the examples are those of a classifier.
    """
    rows: list[dict[str, Any]] = []
    free: list[int] = []  # tokens left in each row
    for number, example in enumerate(encoded.rows, start=1):
        ids, labels = example["input_ids"], example["labels"]
        if not isinstance(labels, list):
            raise InputError("a classifier reads one example per row; use batching='length' instead of 'packed'")
        if len(ids) > max_length:
            raise InputError(
                f"example {number} has {len(ids)} tokens and a packed row {max_length}; "
                f"encode with max_length={max_length}, or pack into longer rows"
            )
        candidates = range(max(0, len(rows) - OPEN_ROWS), len(rows))
        place = next((i for i in candidates if free[i] >= len(ids)), len(rows))
        if place == len(rows):
            rows.append({"input_ids": [], "labels": [], "position_ids": []})
            free.append(max_length)
        free[place] -= len(ids)
        row = rows[place]
        row["input_ids"] += ids
        row["labels"] += [IGNORED, *labels[1:]]
        row["position_ids"] += range(len(ids))
    return _encoded(rows, encoded.cut)
