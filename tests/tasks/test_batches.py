from __future__ import annotations

import pytest
import torch

from nlora_lab.core.errors import InputError
from nlora_lab.tasks.batches import IGNORED, BatchOrder, Collate, encode, training_batches
from nlora_lab.tasks.registry import load_task


def test_the_order_is_seeded_and_every_epoch_sees_every_row():
    order = list(BatchOrder(rows=10, steps=7, batch_size=4, seed=3))
    assert order == list(BatchOrder(rows=10, steps=7, batch_size=4, seed=3))
    assert order != list(BatchOrder(rows=10, steps=7, batch_size=4, seed=4))
    assert [len(b) for b in order] == [4] * 7
    flat = [i for batch in order for i in batch]
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))


def test_a_longer_run_begins_with_the_same_batches():
    short, long = (list(BatchOrder(rows=50, steps=n, batch_size=4, seed=0)) for n in (5, 30))
    assert long[:5] == short


def test_an_empty_split_is_refused():
    with pytest.raises(InputError, match="empty"):
        BatchOrder(0, 1, 1, 0)


@pytest.mark.parametrize("name", ["word-problems", "entailment"])
def test_the_prompt_is_outside_the_loss_token_by_token(embedded, name):
    _, tokenizer = embedded
    rows = load_task(name).test.select(range(20))
    for row, item in zip(encode(rows, tokenizer), rows, strict=True):
        prompt = tokenizer(item["prompt"])["input_ids"]
        assert prompt[0] == tokenizer.bos_token_id
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"][: len(prompt)] == [IGNORED] * len(prompt)
        assert row["labels"][len(prompt) :] == row["input_ids"][len(prompt) :]
        assert row["labels"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row["labels"][len(prompt) : -1]) == item["target"]
        # what is learned in two pieces is what the whole text would be
        assert row["input_ids"][:-1] == tokenizer(item["prompt"] + item["target"])["input_ids"]


def test_padding_is_masked_everywhere():
    batch = Collate(pad=9)([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert all(v.dtype == torch.int64 for v in batch.values())


def test_the_loader_follows_the_order(embedded):
    _, tokenizer = embedded
    rows = load_task("entailment").train
    order = BatchOrder(len(rows), 3, 4, 1)
    encoded = encode(rows, tokenizer)
    for indices, batch in zip(order, training_batches(rows, tokenizer, order), strict=True):
        assert torch.equal(
            batch["input_ids"], Collate(tokenizer.pad_token_id)([encoded[i] for i in indices])["input_ids"]
        )
