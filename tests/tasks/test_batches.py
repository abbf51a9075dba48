"""Orders of rows, padding, and the batches that a run and its measurements read."""

from __future__ import annotations

import pytest
import torch

from nlora_lab.core.errors import InputError
from nlora_lab.tasks.batches import BatchOrder, Collate, LengthOrder, plain_batches, training_batches
from nlora_lab.tasks.encoding import IGNORED, encode, encode_task
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
        # prompt and target, encoded separately, give the tokens of the complete text
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


# ------------------------------------------------------------------------------------------------- batches by length


LENGTHS = [(i * 37) % 101 for i in range(1003)]


def test_every_epoch_by_length_sees_every_row_in_full_batches():
    order = list(LengthOrder(LENGTHS, 300, 8, seed=3))
    assert order == list(LengthOrder(LENGTHS, 300, 8, seed=3))
    assert order != list(LengthOrder(LENGTHS, 300, 8, seed=4))
    assert [len(batch) for batch in order] == [8] * 300
    flat = [i for batch in order for i in batch]
    assert sorted(flat[:1003]) == sorted(flat[1003:2006]) == list(range(1003))
    assert flat[:1003] != flat[1003:2006]


def test_rows_of_a_batch_have_similar_length_and_batches_are_shuffled():
    order = list(LengthOrder(LENGTHS, 120, 8, seed=0))

    def spread(batches):
        return sum(max(LENGTHS[i] for i in b) - min(LENGTHS[i] for i in b) for b in batches) / len(batches)

    assert spread(order) < 0.1 * spread(list(BatchOrder(len(LENGTHS), 120, 8, 0)))
    shortest = [min(LENGTHS[i] for i in batch) for batch in order[:50]]
    assert shortest != sorted(shortest)


def test_a_longer_run_by_length_begins_with_the_same_batches():
    short, long = (list(LengthOrder(LENGTHS, n, 8, 1)) for n in (5, 400))
    assert long[:5] == short


def test_rows_repeat_if_there_are_fewer_than_a_batch_takes():
    for rows in range(1, 6):
        order = LengthOrder(list(range(rows)), 9, 4, 0)
        batches = list(order)
        assert [len(batch) for batch in batches] == [4] * len(order) == [4] * 9
        flat = [i for batch in batches for i in batch]
        assert sorted(flat[:rows]) == list(range(rows)) == sorted(flat[rows : 2 * rows])


def test_an_empty_split_has_no_order_by_length():
    with pytest.raises(InputError, match="empty"):
        LengthOrder([], 1, 1, 0)


# ----------------------------------------------------------------------------------------------------------- loaders


def test_encoded_rows_make_the_same_batches_as_a_dataset(embedded):
    _, tokenizer = embedded
    task = load_task("entailment")
    rows = task.train.select(range(30))
    encoded = encode_task(rows, task, tokenizer)
    order, cpu = BatchOrder(30, 3, 4, 1), torch.device("cpu")
    pairs = [
        (training_batches(rows, tokenizer, order), training_batches(encoded, tokenizer, order)),
        (plain_batches(rows, tokenizer, cpu, 7), plain_batches(encoded, tokenizer, cpu, 7)),
    ]
    for from_rows, from_encoded in pairs:
        for one, other in zip(from_rows, from_encoded, strict=True):
            assert one.keys() == other.keys() == {"input_ids", "attention_mask", "labels"}
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_loader_follows_an_order_by_length(embedded):
    _, tokenizer = embedded
    task = load_task("word-problems")
    encoded = encode_task(task.train.select(range(200)), task, tokenizer)
    order = LengthOrder([len(row["input_ids"]) for row in encoded.rows], 4, 8, 2)
    for rows, batch in zip(order, training_batches(encoded, tokenizer, order), strict=True):
        expected = Collate(tokenizer.pad_token_id)([encoded.rows[i] for i in rows])
        assert torch.equal(batch["input_ids"], expected["input_ids"])
