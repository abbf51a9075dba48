from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from operator import add, mul, sub

import pytest
from factories import ROOT

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import shipped_folder
from nlora_lab.evaluation.generation import label_tokens
from nlora_lab.evaluation.scoring import accuracy, answers
from nlora_lab.tasks import vocabulary
from nlora_lab.tasks.final_answers import final_number
from nlora_lab.tasks.generated import DIFFICULTIES, LARGEST, SIZES, TASKS, generate, to_jsonl
from nlora_lab.tasks.registry import load_task

STEP = re.compile(r"(\d+)([+*-])(\d+)=(\d+)\.")
OPERATORS = {"+": add, "-": sub, "*": mul}


@pytest.mark.parametrize("name", list(TASKS))
def test_the_shipped_files_equal_the_generated_items_byte_for_byte(name):
    splits = generate(name)
    assert set(splits) == set(SIZES)
    for split, items in splits.items():
        assert (shipped_folder("data") / "tasks" / name / f"{split}.jsonl").read_bytes() == to_jsonl(items).encode()


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_no_prompt_occurs_twice_in_or_across_splits(name, difficulty):
    task = load_task(name, difficulty=difficulty)
    prompts = [p for split in SIZES for p in getattr(task, split)["prompt"]]
    assert len(prompts) == sum(SIZES.values())
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize(("difficulty", "operations"), [("easy", {2}), ("medium", {2, 3}), ("hard", {3, 4})])
def test_word_problems_are_worked_out_right_and_each_step_needs_the_last(difficulty, operations):
    counts = set()
    for item in load_task("word-problems", difficulty=difficulty).test:
        steps = STEP.findall(item["target"])
        counts.add(len(steps))
        for a, sign, b, value in steps:
            assert OPERATORS[sign](int(a), int(b)) == int(value)
            assert 1 <= int(value) <= LARGEST
        for before, after in pairwise(steps):
            assert before[3] in (after[0], after[2])
        assert final_number(item["target"]) == item["answer"] == steps[-1][3]
    assert counts == operations


AMOUNT = re.compile(r"(\w+) has (more|less) than (\d+) (\w+)\.")


def solve(prompt: str) -> str:
    """Solve an entailment prompt independently, by trying every possible number."""
    facts, claim = prompt.removesuffix(" True? A:").split(" Claim: ")
    who, word, bound, thing = AMOUNT.fullmatch(claim).groups()
    ((_, known, number, _),) = [f for f in AMOUNT.findall(facts) if (f[0], f[3]) == (who, thing)]
    possible = [n for n in range(200) if (n > int(number)) == (known == "more") and n != int(number)]
    verdicts = {(n > int(bound)) if word == "more" else (n < int(bound)) for n in possible}
    return "maybe" if len(verdicts) == 2 else "yes" if verdicts == {True} else "no"


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_entailment_answers_are_right_and_balanced(difficulty):
    rows = load_task("entailment", difficulty=difficulty).train.select(range(2000))
    assert [solve(p) for p in rows["prompt"]] == list(rows["answer"])
    shares = Counter(rows["answer"])
    assert all(0.28 < shares[label] / 2000 < 0.39 for label in ("yes", "no", "maybe"))


def test_harder_is_longer():
    means = [sum(map(len, load_task("word-problems", difficulty=d).test["target"])) / 200 for d in DIFFICULTIES]
    assert means == sorted(means)
    assert means[0] < means[2] - 10


def test_before_tuning_the_embedded_model_solves_neither_task(embedded):
    model, tokenizer = embedded
    assert accuracy(answers(model, tokenizer, load_task("word-problems"))) < 0.05
    assert 0.2 < accuracy(answers(model, tokenizer, load_task("entailment"))) < 0.47


def test_labels_are_one_distinguishable_token_each(embedded):
    _, tokenizer = embedded
    for word in TASKS["entailment"].labels:
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1
    assert len(set(label_tokens(tokenizer, TASKS["entailment"].labels))) == 3
    with pytest.raises(InputError, match="share a first token"):
        label_tokens(tokenizer, ("yes", "yes it is"))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [({"name": "poetry"}, "task='poetry'"), ({"difficulty": "cruel"}, "difficulty='cruel'")],
)
def test_unknown_names_are_named(arguments, names):
    with pytest.raises(InputError, match=names):
        load_task(**arguments)


def folder(tmp_path, train, test):
    (tmp_path / "train.jsonl").write_text(train)
    (tmp_path / "test.jsonl").write_text(test)
    return tmp_path


def test_items_from_a_folder(tmp_path):
    items = [{"prompt": f"{i}?", "target": f" {i}", "answer": str(i), "more": 1} for i in range(40)]
    task = load_task(path=folder(tmp_path, to_jsonl(items), to_jsonl(items[:3])))
    assert [len(getattr(task, s)) for s in ("train", "validation", "test")] == [38, 2, 3]
    assert task.train.column_names == ["prompt", "target", "answer"]
    assert task.validation["prompt"] == ["38?", "39?"]


GOOD = '{"prompt": "a", "target": "b", "answer": "c"}\n'


@pytest.mark.parametrize(
    ("name", "train", "names"),
    [
        ("word-problems", "", "is empty"),
        ("word-problems", GOOD + "{", "line 2 is not JSON"),
        ("word-problems", GOOD + '{"prompt": "a", "target": "b"}', "line 2 needs the fields .* missing: 'answer'"),
        ("word-problems", GOOD + "[1]", "line 2 is not an object"),
        ("word-problems", '{"prompt": "a", "target": "", "answer": "c"}', "must be text"),
        ("word-problems", '{"prompt": "a", "target": "b", "answer": 3}', "must be text"),
        ("word-problems", GOOD, "at least 2"),
        ("entailment", GOOD + GOOD, "answer='c' is not known"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, train, names):
    with pytest.raises(InputError, match=names):
        load_task(name, path=folder(tmp_path, train, GOOD))


def test_a_folder_without_files_is_named(tmp_path):
    with pytest.raises(InputError, match=r"train\.jsonl cannot be read"):
        load_task(path=tmp_path)


def without_people(prompt):
    """A prompt with people numbered in the order in which they appear, and with one set of pronouns."""
    numbers = {}
    names = "|".join(person.name for person in vocabulary.PEOPLE)
    text = re.sub(rf"\b({names})\b", lambda m: numbers.setdefault(m[0], f"person {len(numbers)}"), prompt)
    for pronouns, common in (
        ("she|he", "they"),
        ("her|him|his", "their"),
        ("She|He", "They"),
        ("Her|Him|His", "Their"),
    ):
        text = re.sub(rf"\b({pronouns})\b", common, text, flags=re.IGNORECASE)
    return text


def test_the_readme_says_how_many_test_prompts_are_training_prompts_with_other_names():
    text = " ".join((ROOT / "data" / "tasks" / "README.md").read_text().split())
    found = re.search(r"But (\d+) of the (\d+) test prompts of `entailment`, and (\d+) of `word-problems`", text)
    alike = {}
    for name in ("entailment", "word-problems"):
        task = load_task(name)
        seen = {without_people(row["prompt"]) for row in task.train}
        alike[name] = sum(without_people(row["prompt"]) in seen for row in task.test)
    assert [int(number) for number in found.groups()] == [alike["entailment"], len(task.test), alike["word-problems"]]
