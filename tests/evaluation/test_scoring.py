"""Answers and measures: generated text, the choice of a label, and classification heads."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from factories import EMBEDDED, tiny_bert, tiny_llama

from nlora_lab.core.errors import InputError
from nlora_lab.core.interrupts import Interrupted
from nlora_lab.evaluation.generation import batch_spans, greedy, label_tokens, longest_answer, pad_left, split_labels
from nlora_lab.evaluation.scoring import accuracy, answers, mark_answers, mean_loss, measure, task_prompts
from nlora_lab.models import batch_limits
from nlora_lab.models.loading import load_model
from nlora_lab.tasks.batches import plain_batches
from nlora_lab.tasks.encoding import encode_task, few_shot, prompt_ids
from nlora_lab.tasks.final_answers import full_answer, marked_answer
from nlora_lab.tasks.generated import TASKS
from nlora_lab.tasks.glue import compute_measures
from nlora_lab.tasks.registry import load_task
from nlora_lab.tasks.task import Task
from nlora_lab.training.export import _save_whole


def task_for(rows, **changes):
    from datasets import Dataset

    rows = Dataset.from_list(rows)
    return Task("mine", "", rows, rows, rows, **changes)


class Parrot(torch.nn.Module):
    """Continues each prompt with the text that a function returns, and records the shapes of the batches."""

    def __init__(self, tokenizer, reply):
        super().__init__()
        self.tokenizer, self.reply, self.device, self.batches = tokenizer, reply, torch.device("cpu"), []

    def generate(self, input_ids, attention_mask, max_new_tokens, **_):
        self.batches.append((*input_ids.shape, max_new_tokens))
        texts = [
            self.tokenizer.decode(ids[mask.bool()]) for ids, mask in zip(input_ids, attention_mask, strict=True)
        ]  # fmt: skip
        ids = [self.tokenizer(self.reply(t), add_special_tokens=False)["input_ids"][:max_new_tokens] for t in texts]
        longest = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        new = torch.tensor([one + [pad] * (longest - len(one)) for one in ids], dtype=torch.int64)
        return torch.cat([input_ids, new], 1)


@pytest.fixture
def tokenizer(embedded):
    return copy.deepcopy(embedded[1])


SUMS = [
    {"prompt": f"Question: {i}+1?\nAnswer:", "target": f" {i}+1={i + 1}\n#### {i + 1}", "answer": str(i + 1)}
    for i in range(12)
]


# ---------------------------------------------------------------------------------------------------------- text


def test_the_tasks_own_reader_reads_the_answers(tokenizer):
    task = task_for(SUMS, final=marked_answer)
    parrot = Parrot(tokenizer, lambda text: " #### 5.0\n\nQuestion: 1\nAnswer: #### 7")
    results, measures = measure(parrot, tokenizer, task)
    assert [a.correct for a in results] == [i == 4 for i in range(12)]
    assert measures == {"accuracy": pytest.approx(1 / 12)}
    assert (results[4].prompt, results[4].expected) == (SUMS[4]["prompt"], "5")

    whole = task_for([{"prompt": "a", "target": " b c", "answer": "b c"}], final=full_answer)
    for text, correct in ((" b c ", True), (" B c", False), (" b c d", False)):
        assert answers(Parrot(tokenizer, lambda _, text=text: text), tokenizer, whole)[0].correct is correct


def test_shots_are_put_before_every_prompt(tokenizer):
    task = task_for(SUMS, final=marked_answer)
    prompts = []
    parrot = Parrot(tokenizer, lambda text: prompts.append(text) or " #### 1")
    results = answers(parrot, tokenizer, task, limit=2, shots=3)
    shots = "".join(f"{r['prompt']}{r['target']}\n\n" for r in SUMS[:3])
    assert prompts == [f"<s>{shots}{r['prompt']}" for r in SUMS[:2]]
    assert results[0].prompt == SUMS[0]["prompt"]
    assert measure(parrot, tokenizer, task, limit=1, shots=1)[0][0].correct
    with pytest.raises(InputError, match="shots=99"):
        answers(parrot, tokenizer, task, shots=99)


def test_prompts_go_through_the_chat_template(tokenizer):
    tokenizer.chat_template = (
        "{{ bos_token }}User: {{ messages[0]['content'] }}\n{% if add_generation_prompt %}Bot:{% endif %}"
    )
    prompts = []
    parrot = Parrot(tokenizer, lambda text: prompts.append(text) or " x")
    task = task_for(SUMS, final=marked_answer, chat=True)
    answers(parrot, tokenizer, task, limit=1)
    answers(parrot, tokenizer, replace(task, chat=False), limit=1)
    assert prompts == [f"<s>User: {SUMS[0]['prompt']}\nBot:", f"<s>{SUMS[0]['prompt']}"]
    assert task_prompts(task, tokenizer, limit=1) == [prompts[0]]
    assert task_prompts(replace(task, chat=False), tokenizer, limit=1, shots=1)[0].count("####") == 1


def test_answers_of_another_program_are_marked_the_same_way(tokenizer):
    task = task_for(SUMS, final=marked_answer)
    results = mark_answers(task, task.test, [f"#### {i}" for i in (1, 2, 4, *[0] * 9)])
    assert [a.correct for a in results] == [True, True] + [False] * 10


def test_new_tokens_are_the_longest_target_plus_8_or_max_new_tokens(tokenizer):
    task, parrot = task_for(SUMS), Parrot(tokenizer, lambda _: " x")
    longest = max(len(ids) for ids in tokenizer(list(task.test["target"]), add_special_tokens=False)["input_ids"])
    answers(parrot, tokenizer, task)
    answers(parrot, tokenizer, task, max_new_tokens=3)
    assert [new for *_, new in parrot.batches] == [longest + 8, 3]


def test_prompts_and_answers_fit_into_max_length(tokenizer):
    task, parrot = (
        task_for([{"prompt": "a b " * 100, "target": " c", "answer": "c"}]),
        Parrot(tokenizer, lambda _: " x"),
    )
    answers(parrot, tokenizer, task, max_length=60, max_new_tokens=20)
    answers(parrot, tokenizer, task, max_length=60, max_new_tokens=50)
    answers(parrot, tokenizer, task, max_length=1000, max_new_tokens=20)
    length = len(prompt_ids(["a b " * 100], tokenizer)[0])
    assert parrot.batches == [(1, 40, 20), (1, 30, 30), (1, length, 20)]


def test_long_prompts_are_answered_in_smaller_batches_in_order():
    lengths = [(i * 37) % 900 + 1 for i in range(700)]
    spans = list(batch_spans(lengths, 256))
    assert [i for start, end in spans for i in range(start, end)] == list(range(700))
    for start, end in spans:
        size, tokens = end - start, max(lengths[start:end]) + 256
        assert size <= batch_limits.ANSWER_ROWS
        assert size * tokens <= batch_limits.ANSWER_TOKENS
        if end < 700:  # one more row would exceed a limit
            assert (
                size == batch_limits.ANSWER_ROWS
                or (size + 1) * (max(lengths[start : end + 1]) + 256) > batch_limits.ANSWER_TOKENS
            )
    assert list(batch_spans([99_999] * 2, 0)) == [(0, 1), (1, 2)]
    assert list(batch_spans([], 0)) == []
    assert all(a[1] == b[0] for a, b in pairwise(spans))


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("difficulty", ["easy", "hard"])
def test_generated_tasks_are_answered_in_batches_of_100(tokenizer, name, difficulty):
    rows = load_task(name, difficulty=difficulty).train
    lengths = [len(ids) for ids in tokenizer(list(rows["prompt"]))["input_ids"]]
    spans = batch_spans(lengths, longest_answer(tokenizer, rows))
    assert {end - start for start, end in spans} == {100}


def test_left_padding_equals_that_of_the_tokenizer(embedded):
    model, tokenizer = embedded
    prompts = ["Ana has 3 pears.", "Q:", "Ana has 3 pears. She buys 2 more. Q:"]
    expected = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", return_token_type_ids=False)
    batch = pad_left(model, tokenizer, prompt_ids(prompts, tokenizer))
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[key], expected[key]) for key in batch)
    assert greedy(model, tokenizer, prompts, 5) == [greedy(model, tokenizer, [p], 5)[0] for p in prompts]


# -------------------------------------------------------------------------------------------------------- choice


def test_a_choice_is_the_likeliest_label_with_and_without_chat(embedded, tokenizer):
    model, _ = embedded
    task = replace(load_task("entailment"), chat=True)
    plain, _ = measure(model, tokenizer, replace(task, chat=False), limit=20)
    assert [a.text for a in plain] == [a.text for a in answers(model, tokenizer, task, limit=20)]  # no template
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    logits = []

    def forward(input_ids, attention_mask, position_ids):
        out = model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)
        logits.append(out.logits[:, -1])
        return out

    model_like = torch.nn.Module()
    model_like.forward, model_like.device = forward, model.device
    texts = [a.text for a in answers(model_like, tokenizer, task, limit=20)]
    ids = [tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in task.labels]  # no space before
    assert texts == [task.labels[i] for i in logits[0][:, ids].argmax(-1).tolist()]


# ---------------------------------------------------------------------------------------------- heads: tiny models


def head_rows(kind, count=23):
    return [
        {
            "text": f"Ana has {i} pears.",
            "pair": "" if i % 3 else f"She has {i}.",
            "label": i % 5 * 1.0 if kind == "score" else i % 3,
        }
        for i in range(count)
    ]


def classifier(family, outputs, tokenizer):
    from transformers import BertForSequenceClassification, LlamaForSequenceClassification

    torch.manual_seed(3)
    base = {"llama": tiny_llama, "bert": tiny_bert}[family]
    config = base(vocab_size=len(tokenizer)).config if family == "llama" else base().config
    config.vocab_size, config.num_labels, config.pad_token_id = len(tokenizer), outputs, tokenizer.pad_token_id
    family_class = {"llama": LlamaForSequenceClassification, "bert": BertForSequenceClassification}[family]
    return family_class(config)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_classes_are_read_from_the_head(tokenizer, family):
    task = task_for(head_rows("classes"), kind="classes", labels=("a", "b", "c"), measures=("matthews", "accuracy"))
    model = classifier(family, task.head, tokenizer)
    results, measures = measure(model, tokenizer, task)
    assert model.training  # the mode is restored
    model.eval()
    alone = []
    for row in task.test:
        ids = tokenizer(row["text"], row["pair"], return_tensors="pt", return_token_type_ids=False)
        alone.append(int(model(**ids).logits.argmax()))
    assert [a.text for a in results] == [task.labels[i] for i in alone]
    assert [a.expected for a in results] == [task.labels[i % 3] for i in range(23)]
    assert measures == compute_measures(("matthews", "accuracy"), alone, list(task.test["label"]))
    assert measures["accuracy"] == pytest.approx(accuracy(results))
    assert results == answers(model, tokenizer, task)
    assert results[0].prompt == "Ana has 0 pears.\nShe has 0."
    assert len(measure(model, tokenizer, task, limit=4)[0]) == 4


def test_scores_are_read_from_the_head(tokenizer):
    task = task_for(head_rows("score"), kind="score", measures=("pearson", "spearman"))
    model = classifier("llama", task.head, tokenizer)
    results, measures = measure(model, tokenizer, task)
    assert measures.keys() == {"pearson", "spearman"}
    scores = [float(a.text) for a in results]
    assert measures == pytest.approx(
        compute_measures(("pearson", "spearman"), scores, list(task.test["label"])), abs=0.02
    )
    assert [a.correct for a in results] == [abs(s - i % 5) <= 0.5 for i, s in enumerate(scores)]
    assert results[4].expected == "4"


def test_the_batch_size_does_not_change_the_answers_of_a_head(tokenizer, monkeypatch):
    task = task_for(head_rows("classes"), kind="classes", labels=("a", "b", "c"))
    model = classifier("llama", 3, tokenizer)
    results = answers(model, tokenizer, task)
    monkeypatch.setattr(batch_limits, "ANSWER_TOKENS", 60)
    assert answers(model, tokenizer, task) == results


def test_texts_for_a_head_are_cut(tokenizer):
    task = task_for(head_rows("classes"), kind="classes", labels=("a", "b", "c"))
    model, lengths = classifier("llama", 3, tokenizer), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    measure(model, tokenizer, task, max_length=5)
    measure(model, tokenizer, task)
    assert lengths[0] == 5 < lengths[1]


def test_the_mean_loss_of_a_head_is_that_of_the_examples(tokenizer):
    for kind, labels, loss in (
        ("classes", ("a", "b", "c"), torch.nn.functional.cross_entropy),
        ("score", (), torch.nn.functional.mse_loss),
    ):
        task = task_for(head_rows(kind), kind=kind, labels=labels)
        model = classifier("llama", task.head, tokenizer).eval()
        encoded = encode_task(task.test, task, tokenizer)
        value = mean_loss(model, plain_batches(encoded, tokenizer, model.device, size=10))  # the last batch has 3
        with torch.no_grad():
            logits = torch.cat([model(torch.tensor([row["input_ids"]])).logits for row in encoded.rows])
        expected = loss(logits if labels else logits[:, 0], torch.tensor([row["labels"] for row in encoded.rows]))
        assert value == pytest.approx(float(expected), rel=1e-5)


def test_measuring_a_head_can_be_stopped(tokenizer):
    task = task_for(head_rows("classes"), kind="classes", labels=("a", "b", "c"))
    with pytest.raises(Interrupted):
        measure(classifier("llama", 3, tokenizer), tokenizer, task, should_stop=lambda: True)


def test_a_head_takes_no_shots(tokenizer):
    task = task_for(head_rows("classes"), kind="classes", labels=("a", "b", "c"))
    assert few_shot(task, 0) == ""
    with pytest.raises(InputError, match="classification head, which takes no examples"):
        few_shot(task, 2)
    with pytest.raises(InputError, match="shots=2: mine is answered by a classification head"):
        answers(classifier("llama", 3, tokenizer), tokenizer, task, shots=2)
    with pytest.raises(InputError, match="shots=2"):
        measure(classifier("llama", 3, tokenizer), tokenizer, task, shots=2)


def test_a_task_from_a_file_is_learned_and_measured(tokenizer, tmp_path):
    """The rows of a file with two classes are encoded and learned in a few steps, to an accuracy of 1."""
    lines = [{"text": f"{'pears' if i % 2 else 'Ana has'} {i % 7}", "label": i % 2} for i in range(200)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = load_task("own", tmp_path / "own.jsonl")
    model = classifier("llama", task.head, tokenizer)
    batches = list(plain_batches(encode_task(task.train, task, tokenizer), tokenizer, model.device, size=32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in batches * 4:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert measure(model, tokenizer, task)[1] == {"accuracy": 1.0}


def test_greedy_ignores_the_generation_settings_of_a_checkpoint(embedded):
    model, tokenizer = copy.deepcopy(embedded[0]), embedded[1]
    plain = greedy(model, tokenizer, ["3+4=", "Ana has 3 pears."], 12)
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.suppress_tokens = list(range(20, 80))
    assert greedy(model, tokenizer, ["3+4=", "Ana has 3 pears."], 12) == plain


def test_labels_after_a_token_for_the_space_are_distinguished(embedded):
    class Dummy:
        """Puts a token before every text, as the tokenizer of Llama 2 does."""

        def __call__(self, text, **_):
            return {"input_ids": [9, *embedded[1](text, add_special_tokens=False)["input_ids"]]}

    labels = ("yes", "no", "maybe")
    assert split_labels(Dummy(), labels, " ")[0] == [9]
    assert label_tokens(Dummy(), labels) == label_tokens(embedded[1], labels)
    with pytest.raises(InputError, match="share a first token"):
        label_tokens(Dummy(), ("yes", "yes it is"))


def test_a_batch_that_does_not_fit_into_memory_is_halved(tokenizer):
    class Small(Parrot):
        def generate(self, input_ids, attention_mask, max_new_tokens, **options):
            if len(input_ids) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().generate(input_ids, attention_mask, max_new_tokens, **options)

    def reply(text):
        number = int(text.split()[1].split("+")[0])
        return f" #### {number + 1 + number % 2}"

    task, small = task_for(SUMS, final=marked_answer), Small(tokenizer, reply)
    small.room = 3
    results = answers(small, tokenizer, task)
    assert [a.correct for a in results] == [True, False] * 6
    assert [rows for rows, _, _ in small.batches] == [3, 3, 3, 3]
    small.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        answers(small, tokenizer, task)


@pytest.mark.parametrize(("own", "ends"), [(887, [2, 887]), ([0, 887], [0, 2, 887]), (0, [0, 2]), (2, 2), (None, 2)])
def test_an_answer_ends_at_the_tokens_of_the_model_and_of_the_tokenizer(embedded, tmp_path, own, ends):
    folder = shutil.copytree(EMBEDDED, tmp_path / "model")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": own}))
    model, tokenizer = load_model(str(folder))
    assert model.generation_config.eos_token_id == ends
    task = load_task("word-problems", test_rows=6)
    assert answers(model, tokenizer, task) == answers(*embedded, task)
    if own is not None:  # also of a model that was loaded elsewhere
        model.generation_config.eos_token_id = own
        assert answers(model, tokenizer, task) == answers(*embedded, task)
    model.generation_config.eos_token_id = ends
    _save_whole(model, tokenizer, tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"] == ends
