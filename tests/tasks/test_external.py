"""External tasks, from small files in their formats and from a stand-in for the hub."""

from __future__ import annotations

import json
import math
import types
from contextlib import nullcontext

import pytest
from scipy import stats

from nlora_lab.core.errors import InputError
from nlora_lab.tasks import sources
from nlora_lab.tasks.encoding import few_shot
from nlora_lab.tasks.external import hold_out
from nlora_lab.tasks.generated import TASKS, first_items
from nlora_lab.tasks.glue import GLUE, compute_measures
from nlora_lab.tasks.registry import EXTERNAL_TASKS, check_task, load_task
from nlora_lab.tasks.task import Task

SPLITS = ("train", "validation", "test")


def gsm8k(count, start=0):
    return [
        {
            "question": f"Ana has {i} pears and buys 2. How many?",
            "answer": f"{i}+2 = <<{i}+2={i + 2}>>{i + 2}\n#### {i + 2}",
        }
        for i in range(start, start + count)
    ]


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path, rows):
    from datasets import Dataset

    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(path)
    return path


def sizes(task):
    return [len(getattr(task, split)) for split in SPLITS]


# --------------------------------------------------------------------------------------------------------- GSM8K


def check_gsm8k(task, train, test):
    assert (task.kind, task.head, task.metric) == ("text", 0, "exact match of the final number")
    assert sizes(task) == [train - max(1, train // 20), max(1, train // 20), test]
    row = next(r for r in task.train if "Ana has 7 pears" in r["prompt"])
    assert row == {
        "prompt": "Question: Ana has 7 pears and buys 2. How many?\nAnswer:",
        "target": " 7+2 = 9\n#### 9",
        "answer": "9",
    }
    assert task.final(row["target"]) == "9"
    assert not set(task.train["prompt"]) & set(task.validation["prompt"])


def test_gsm8k_in_the_hubs_layout(tmp_path):
    parquet(tmp_path / "main" / "train-00000-of-00002.parquet", gsm8k(25))
    parquet(tmp_path / "main" / "train-00001-of-00002.parquet", gsm8k(15, start=25))
    parquet(tmp_path / "main" / "test-00000-of-00001.parquet", gsm8k(3, start=90))
    check_gsm8k(load_task("gsm8k", tmp_path), 40, 3)


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_gsm8k_in_plain_files(tmp_path, write):
    ending = "jsonl" if write is jsonl else "parquet"
    write(tmp_path / f"train.{ending}", gsm8k(40))
    write(tmp_path / f"test.{ending}", gsm8k(3, start=90))
    check_gsm8k(load_task("gsm8k", str(tmp_path)), 40, 3)


def test_one_file_is_split_in_three_the_same_every_time(tmp_path):
    file = jsonl(tmp_path / "problems.jsonl", gsm8k(200))
    first, again = load_task("gsm8k", file), load_task("gsm8k", file)
    assert sizes(first) == [171, 9, 20]
    prompts = [p for split in SPLITS for p in getattr(first, split)["prompt"]]
    assert len(set(prompts)) == 200
    for split in SPLITS:
        assert list(getattr(first, split)) == list(getattr(again, split))
    numbers = [int(p.split()[3]) for p in first.train["prompt"]]
    assert numbers == sorted(numbers)  # the rows that stay keep their order


def test_a_validation_file_is_used(tmp_path):
    for split, count in (("train", 30), ("dev", 4), ("test", 5)):
        jsonl(tmp_path / f"{split}.jsonl", gsm8k(count))
    assert sizes(load_task("gsm8k", tmp_path)) == [30, 4, 5]


def test_only_the_first_rows_are_taken(tmp_path):
    file = jsonl(tmp_path / "problems.jsonl", gsm8k(200))
    few, all_rows = load_task("gsm8k", file, train_rows=10, test_rows=1000), load_task("gsm8k", file)
    assert sizes(few) == [10, 9, 20]
    assert list(few.train) == list(all_rows.train.select(range(10)))
    assert list(few.validation) == list(all_rows.validation)
    assert len(load_task("word-problems", train_rows=5, test_rows=3).test) == 3
    with pytest.raises(InputError, match="train_rows=0 must be"):
        load_task("gsm8k", file, train_rows=0)


def test_at_most_500_rows_are_held_out_for_validation():
    rows = [{"prompt": str(i)} for i in range(20_000)]
    staying, groups, held_out = hold_out(rows, [r["prompt"] for r in rows], (20, 500), "validation", "here")
    assert (len(staying), len(groups), len(held_out)) == (19_500, 19_500, 500)


def test_rows_of_one_group_stay_together():
    rows, groups = [{"n": i} for i in range(60)], [str(i // 3) for i in range(60)]
    staying, _, held_out = hold_out(rows, groups, (10, 500), "validation", "here")
    assert {r["n"] // 3 for r in staying} & {r["n"] // 3 for r in held_out} == set()
    assert len(held_out) == 6
    assert len(hold_out(rows, groups, (60, 500), "validation", "here")[2]) == 3  # no group has only 1 row


def test_few_shots_are_the_first_training_examples(tmp_path):
    task = load_task("gsm8k", jsonl(tmp_path / "p.jsonl", gsm8k(30)))
    first = task.train[0]
    assert few_shot(task, 0) == ""
    assert few_shot(task, 1) == f"{first['prompt']}{first['target']}\n\n"
    assert few_shot(task, 3).count("####") == 3
    for bad in (-1, 1000, 1.5):
        with pytest.raises(InputError, match=rf"shots={bad}"):
            few_shot(task, bad)


# ------------------------------------------------------------------------------------------------------ MetaMath


def metamath(count):
    return [
        {
            "query": f"Ana has {i} pears, in wording {wording}. How many?",
            "response": f"She has {i}.\n#### {i}\nThe answer is: {i}",
            "original_question": f"Ana has {i} pears.",
            "type": "GSM_Rephrased",
        }
        for i in range(count)
        for wording in range(4)
    ]


def test_metamath_trains_and_gsm8k_tests(tmp_path):
    (tmp_path / "MetaMathQA-395K.json").write_text(json.dumps(metamath(30)))
    jsonl(tmp_path / "gsm8k" / "test.jsonl", gsm8k(6))
    task = load_task("metamath", tmp_path)
    assert sizes(task) == [116, 4, 6]
    assert task.train[0]["target"].endswith("#### 0\nThe answer is: 0")
    assert task.test[0]["target"] == " 0+2 = 2\n#### 2"

    def problems(rows):
        return {p.split()[3] for p in rows["prompt"]}

    assert not problems(task.train) & problems(task.validation)


def test_metamath_alone_holds_out_test_rows(tmp_path):
    (tmp_path / "MetaMathQA.json").write_text(json.dumps(metamath(30)))
    for place in (tmp_path, tmp_path / "MetaMathQA.json"):
        task = load_task("metamath", place)
        assert sizes(task) == [104, 4, 12]
    assert len({p.split()[3] for p in task.test["prompt"]}) == 3


# ---------------------------------------------------------------------------------------------------------- GLUE


def glue(name, count, names=False):
    task = GLUE[name]
    for i in range(count):
        row = {column: f"{column} of row {i}" for column in task.columns}
        label = i % len(task.labels) if task.labels else i % 6 * 0.9
        yield {**row, "label": task.labels[label] if names else label, "idx": i}


@pytest.mark.parametrize("name", list(GLUE))
def test_every_glue_task_from_the_hubs_layout(tmp_path, name):
    test_split = "validation_matched" if name == "mnli" else "validation"
    parquet(tmp_path / name / "train-00000-of-00001.parquet", list(glue(name, 40)))
    parquet(tmp_path / name / f"{test_split}-00000-of-00001.parquet", list(glue(name, 8)))
    hidden = -1.0 if name == "stsb" else -1
    parquet(tmp_path / name / "test-00000-of-00001.parquet", [{**r, "label": hidden} for r in glue(name, 5)])
    for place in (tmp_path, tmp_path / name):
        task = load_task(name, place)
        assert sizes(task) == [38, 2, 8]
    spec = GLUE[name]
    first = task.test[1]
    assert first["text"] == f"{spec.columns[0]} of row 1"
    assert first["pair"] == (f"{spec.columns[1]} of row 1" if len(spec.columns) == 2 else "")
    assert first["label"] == (1 if spec.labels else 0.9)
    assert type(first["label"]) is (int if spec.labels else float)
    assert (task.kind, task.head) == (("classes", len(spec.labels)) if spec.labels else ("score", 1))
    assert (task.labels, task.measures) == (spec.labels, spec.measures)


def test_the_measures_of_glue_in_words():
    words = {name: Task(name, "", *[None] * 3, kind="classes", measures=g.measures).metric for name, g in GLUE.items()}
    assert words["cola"] == "Matthews correlation and accuracy"
    assert words["mrpc"] == words["qqp"] == "accuracy and F1"
    assert words["stsb"] == "Pearson correlation and Spearman correlation"
    assert words["rte"] == "accuracy"


def test_glue_from_tsv_with_names_and_quotation_marks(tmp_path):
    head = "sentence1\tsentence2\tlabel\n"
    (tmp_path / "train.tsv").write_text(head + "".join(f'"A {i}\tB {i}\tnot_entailment\n' for i in range(10)))
    (tmp_path / "dev.tsv").write_text(head + 'say "hi"\tB\tentailment\nx\ty\t1\n')
    task = load_task("rte", tmp_path)
    assert task.train[0]["text"].startswith('"A ')
    assert list(task.test) == [
        {"text": 'say "hi"', "pair": "B", "label": 0},
        {"text": "x", "pair": "y", "label": 1},
    ]


def test_a_blank_question_of_qqp_stays(tmp_path):
    rows = [{"question1": f"q{i}", "question2": "" if i == 3 else "r", "label": 0} for i in range(20)]
    jsonl(tmp_path / "train.jsonl", rows)
    jsonl(tmp_path / "validation.jsonl", rows)
    assert load_task("qqp", tmp_path).test[3] == {"text": "q3", "pair": "", "label": 0}


@pytest.mark.parametrize(
    ("name", "label", "names"),
    [
        ("sst2", 2, r"row 2: label=2 is not one of: 0 \(negative\), 1 \(positive\)"),
        ("sst2", -1, "label=-1 .* test split without labels"),
        ("sst2", 0.5, "label=0.5"),
        ("sst2", True, "label=True"),
        ("sst2", "good", "label='good'"),
        ("sst2", None, "label=None"),
        ("stsb", 5.1, "label=5.1 is not one of: a number from 0 to 5"),
        ("stsb", "nan", "label='nan'"),
        ("stsb", "0_4", "label='0_4' is not one of: a number from 0 to 5"),
        ("stsb", "1_0e-1", "label='1_0e-1'"),
        ("sst2", "0_1", "label='0_1'"),
    ],
)
def test_a_label_out_of_range_is_named_with_its_row(tmp_path, name, label, names):
    good = list(glue(name, 20))
    jsonl(tmp_path / "train.jsonl", [good[0], {**good[1], "label": label}, *good[2:]])
    jsonl(tmp_path / "validation.jsonl", good)
    with pytest.raises(InputError, match=names) as error:
        load_task(name, tmp_path)
    assert "train.jsonl" in str(error.value)


def test_the_measures_of_glue_agree_with_their_definitions():
    predictions, truth = [1, 1, 0, 1, 0, 0, 1], [1, 0, 0, 1, 1, 0, 1]
    tp, fp, fn, tn = 3, 1, 1, 2
    measures = compute_measures(("accuracy", "f1", "matthews"), predictions, truth)
    assert measures["accuracy"] == pytest.approx(5 / 7)
    assert measures["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert measures["matthews"] == pytest.approx((tp * tn - fp * fn) / root)
    x, y = [0.0, 1.0, 2.5, 4.0], [0.5, 0.4, 3.0, 5.0]
    measures = compute_measures(("pearson", "spearman"), x, y)
    assert measures == pytest.approx({"pearson": stats.pearsonr(x, y)[0], "spearman": stats.spearmanr(x, y)[0]})
    assert compute_measures(("matthews", "f1"), [0, 0, 0], [1, 0, 0]) == {"matthews": 0.0, "f1": 0.0}
    assert compute_measures(("pearson", "spearman"), [2.0, 2.0], [1.0, 2.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert math.isnan(compute_measures(("pearson",), [2.0, math.nan], [1.0, 2.0])["pearson"])


# ------------------------------------------------------------------------------------------------------ own data


def pairs(first, second, count=40):
    return [{first: f"ask {i}", second: f"say {i}"} for i in range(count)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("prompt", "target"),
        ("prompt", "completion"),
        ("prompt", "response"),
        ("question", "answer"),
        ("instruction", "output"),
    ],
)
def test_the_usual_columns_are_found(tmp_path, first, second):
    task = load_task("own", jsonl(tmp_path / "own.jsonl", pairs(first, second)))
    assert (task.kind, task.metric, sizes(task)) == ("text", "exact match of the complete answer", [35, 1, 4])
    assert task.train[0] == {"prompt": "ask 0", "target": " say 0", "answer": "say 0"}
    assert task.final(" say 0\n") == "say 0"
    assert task.final("Say 0") != "say 0"
    assert task.final("  ") is None


def test_columns_can_be_named(tmp_path):
    rows = [{"prompt": "no", "target": "no", "ask": f"a{i}\n", "reply": f"r{i}"} for i in range(30)]
    task = load_task("own", jsonl(tmp_path / "own.jsonl", rows), columns="ask, reply")
    assert task.train[0] == {"prompt": "a0\n", "target": "r0", "answer": "r0"}


def test_the_input_of_an_instruction_is_kept(tmp_path):
    rows = [{"instruction": f"i{i}", "input": "here" if i == 0 else "", "output": "o"} for i in range(30)]
    prompts = [
        p
        for split in SPLITS
        for p in getattr(load_task("own", jsonl(tmp_path / "a.jsonl", rows)), split)["prompt"]
    ]  # fmt: skip
    assert {"i0\nhere", "i1"} <= set(prompts)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, ending):
    rows = [{"prompt": f'say "{i}", é', "target": f"{i}\u2028."} for i in range(30)]
    file = tmp_path / f"own.{ending}"
    if ending == "jsonl":
        jsonl(file, rows)
    elif ending == "json":
        file.write_text(json.dumps(rows), encoding="utf-8")
    elif ending == "csv":
        lines = [f'"{r["prompt"].replace(chr(34), chr(34) * 2)}","{r["target"]}"\r\n' for r in rows]
        file.write_bytes(("\ufeffprompt,target\r\n" + "".join(lines)).encode())
    elif ending == "tsv":
        file.write_text("prompt\ttarget\n" + "".join(f"{r['prompt']}\t{r['target']}\n" for r in rows), encoding="utf-8")
    else:
        parquet(file, rows)
    task = load_task("own", file)
    read = {row["prompt"]: row["answer"] for split in SPLITS for row in getattr(task, split)}
    assert read == {r["prompt"]: r["target"] for r in rows}


def test_json_lines_in_a_json_file(tmp_path):
    assert sizes(load_task("own", jsonl(tmp_path / "own.json", pairs("prompt", "target")))) == [35, 1, 4]


def test_a_column_of_labels_makes_classes(tmp_path):
    words = [{"text": f"t{i}", "label": ("sad", "glad", "bad")[i % 3]} for i in range(40)]
    task = load_task("own", jsonl(tmp_path / "words.jsonl", words))
    assert (task.kind, task.head, task.labels) == ("classes", 3, ("bad", "glad", "sad"))
    assert task.train[0] == {"text": "t0", "pair": "", "label": 2}
    numbers = [{"text": f"t{i}", "label": i % 11} for i in range(40)]
    assert load_task("own", jsonl(tmp_path / "n.jsonl", numbers)).labels == tuple(map(str, range(11)))


def test_a_folder_of_classes_by_split(tmp_path):
    for split, count in (("train", 20), ("validation", 4), ("test", 6)):
        rows = "".join(f"t{i},{'ab'[i % 2]}\n" for i in range(count))
        (tmp_path / f"{split}.csv").write_text("text,label\n" + rows)
    task = load_task("own", tmp_path)
    assert sizes(task) == [20, 4, 6]
    assert task.test[1] == {"text": "t1", "pair": "", "label": 1}
    (tmp_path / "test.csv").write_text("text,label\nt,c\n")
    with pytest.raises(InputError, match=r"test\.csv, row 1: label='c' is not one of the classes of .*: a, b"):
        load_task("own", tmp_path)


# -------------------------------------------------------------------------------------------------------- errors


def write(path, content):
    (path.write_bytes if isinstance(content, bytes) else path.write_text)(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("a.jsonl", "", "a.jsonl is empty"),
        ("a.json", "[]", "a.json is empty"),
        ("a.csv", "prompt,target\n", "a.csv is empty"),
        ("a.csv", "", "a.csv is empty"),
        ("a.jsonl", '{"prompt": "a", "target": "b"}\n{"prompt"', r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", "[1]\n", r"a\.jsonl, line 1 is not an object"),
        ("a.json", '[\n{"prompt": "a"},\n{"tar', r"a\.json, line 3 is not JSON"),
        ("a.json", "[1]", r"a\.json, row 1 is not an object"),
        ("a.jsonl", b"\xff\xfe", r"a\.jsonl cannot be read .* UTF-8"),
        ("a.parquet", b"PAR1 cut", r"a\.parquet is truncated or is not a Parquet"),
        ("a.txt", "hello", r"a\.txt ends in '\.txt'; data files end in \.jsonl"),
        ("a.csv", "prompt,target\na,b,c\n", "line 2 has 3 cells, and line 1 has 2"),
        ("a.csv", 'prompt,target\na,"b', r"a\.csv, line 2 cannot be read"),
        ("a.csv", "prompt,prompt\na,b\n", "names a column twice"),
        ("a.jsonl", '{"a": "x", "b": "y"}', "has the columns a, b, none of the usual"),
        ("a.jsonl", '{"prompt": "x", "target": 3}', r"row 1: 'target' is 3 \(int\); it must be text"),
        ("a.jsonl", '{"prompt": "x", "target": "y"}\n{"prompt": "x"}', "row 2: 'target' is missing"),
        ("a.jsonl", '{"prompt": "x", "target": ""}', "row 1: 'target' is blank"),
        ("a.jsonl", '{"prompt": "x", "target": "y"}', "1 row of one prompt .* at least 2 rows"),
        ("a.jsonl", '{"text": "x", "label": 0.5}', "row 1: label=0.5 must be a whole number or text"),
        (
            "a.jsonl",
            json.dumps({"text": "x", "label": "y" * 201}),
            "has 201 characters, and the name of a class has 200",
        ),
        ("a.jsonl", '{"text": "x", "label": "a"}', "holds 1 different value;"),
        ("a.jsonl", "".join(f'{{"text": "x", "label": {i}}}\n' for i in range(201)), "holds 201 different values"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, content, names):
    with pytest.raises(InputError, match=names):
        load_task("own", write(tmp_path / name, content))


def test_a_truncated_parquet_file(tmp_path):
    file = parquet(tmp_path / "train.parquet", gsm8k(50))
    file.write_bytes(file.read_bytes()[:-20])
    parquet(tmp_path / "test.parquet", gsm8k(5))
    with pytest.raises(InputError, match=r"train\.parquet is truncated"):
        load_task("gsm8k", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"name": "own"}, "task='own' needs data"),
        ({"name": "gsm8k", "columns": "a,b"}, "columns='a,b': the task 'gsm8k' has fixed columns"),
        ({"name": "gsm8k", "difficulty": "easy"}, "difficulty='easy': the task 'gsm8k'"),
        ({"name": "gsm8k", "difficulty": "cruel"}, "difficulty='cruel'"),
        ({"name": "own", "path": "no/such/file.jsonl"}, r"data='no/such/file\.jsonl' does not exist"),
        ({"name": "own", "path": "nosuch"}, "data='nosuch' does not exist"),
        ({"name": "own", "path": "a\0b"}, "does not exist"),
        ({"name": "poetry"}, "task='poetry' is not known; .*word-problems.*gsm8k.*own"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(arguments, names):
    with pytest.raises(InputError, match=names):
        load_task(**arguments)


def test_a_missing_column_lists_those_there_are(tmp_path):
    file = jsonl(tmp_path / "p.jsonl", [{"question": "a", "solution": "b"}])
    with pytest.raises(InputError, match=r"p\.jsonl has no column 'answer', only question, solution"):
        load_task("gsm8k", file)
    with pytest.raises(InputError, match="has no column 'reply', only question, solution"):
        load_task("own", file, columns="question,reply")
    for bad in ("question", "a,b,c", "question,question"):
        with pytest.raises(InputError, match="must name two columns"):
            load_task("own", file, columns=bad)


def test_a_missing_split_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no data file"):
        load_task("gsm8k", tmp_path)
    jsonl(tmp_path / "train.jsonl", gsm8k(5))
    with pytest.raises(InputError, match=r"has no split 'test', only train; add test\.jsonl"):
        load_task("gsm8k", tmp_path)
    jsonl(tmp_path / "only" / "test.jsonl", gsm8k(5))
    with pytest.raises(InputError, match="has no split 'train', only test"):
        load_task("gsm8k", tmp_path / "only")


def test_an_answer_without_its_mark_is_named(tmp_path):
    rows = gsm8k(5)
    rows[3]["answer"] = "I do not know"
    with pytest.raises(InputError, match=r"row 4: 'answer' has no final answer; end it with '#### N'"):
        load_task("gsm8k", jsonl(tmp_path / "p.jsonl", rows))


# ----------------------------------------------------------------------------------------------------------- hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for the hub. The dictionary has splits of rows, or an error, by id and config."""
    import datasets
    from huggingface_hub import constants

    datasets_by_id = {}
    requests = []

    def load_dataset(hub_id, config=None, **options):
        assert not options.get("trust_remote_code")
        requests.append((hub_id, config))
        splits = datasets_by_id[hub_id, config]
        if isinstance(splits, Exception):
            raise splits
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: types.SimpleNamespace(head=lambda *_, **__: None))
    datasets_by_id["requests"] = requests
    return datasets_by_id


def test_the_tasks_come_from_their_places_on_the_hub(hub):
    from datasets import ClassLabel, Dataset, Features, Value

    hub["openai/gsm8k", "main"] = {"train": Dataset.from_list(gsm8k(40)), "test": Dataset.from_list(gsm8k(3, 90))}
    hub["meta-math/MetaMathQA", None] = {"train": Dataset.from_list(metamath(30))}
    sst2 = Dataset.from_list(list(glue("sst2", 20)))
    hub["nyu-mll/glue", "sst2"] = {"train": sst2, "validation": sst2, "test": sst2}
    named = Features({"text": Value("string"), "label": ClassLabel(names=["off", "on"])})
    rows = Dataset.from_list([{"text": f"t{i}", "label": i % 2} for i in range(20)], features=named)
    hub["me/mine", None] = {"train": rows, "test": rows}

    check_gsm8k(load_task("gsm8k"), 40, 3)
    assert sizes(load_task("metamath")) == [116, 4, 3]
    assert sizes(load_task("sst2")) == [19, 1, 20]
    own = load_task("own", "me/mine")
    assert own.labels == ("off", "on")
    assert own.test[1] == {"text": "t1", "pair": "", "label": 1}
    assert own.difficulty == "from me/mine"
    assert hub["requests"] == [
        ("openai/gsm8k", "main"), ("meta-math/MetaMathQA", None), ("openai/gsm8k", "main"), ("nyu-mll/glue", "sst2"),
        ("me/mine", None),
    ]  # fmt: skip


def test_a_refusal_of_the_hub_is_explained(hub):
    from datasets.exceptions import DatasetNotFoundError

    for error, names in [
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub"), "is not on the hub, or private"),
        (DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub"), "is gated or private; .*hf auth login"),
        (RuntimeError("Dataset scripts are no longer supported"), "needs code of its own"),
        (ValueError("BuilderConfig 'x' not found"), r"could not be loaded from the hub \(BuilderConfig"),
    ]:
        hub["a/b", None] = error
        with pytest.raises(InputError, match=f"data='a/b' {names}"):
            load_task("own", "a/b")


@pytest.mark.parametrize("fails", [False, True])
def test_no_script_of_a_dataset_is_run_whatever_the_environment_says(monkeypatch, fails):
    import datasets

    seen = []

    def load(*_):  # version 3 reads this setting where it is not passed
        seen.append(datasets.config.HF_DATASETS_TRUST_REMOTE_CODE)
        if fails:
            raise ValueError("Please pass the argument `trust_remote_code=True` to allow custom code to be run.")
        return {}

    monkeypatch.setattr(datasets.config, "HF_DATASETS_TRUST_REMOTE_CODE", True, raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("nlora_lab.tasks.sources.check_reachable", lambda *_, **__: None)
    with pytest.raises(InputError, match="needs code of its own, which is never run") if fails else nullcontext():
        sources._open_hub("a/b", None)
    assert seen == [False]
    assert datasets.config.HF_DATASETS_TRUST_REMOTE_CODE is True


def test_without_a_connection_the_error_comes_at_once(hub, monkeypatch):
    from huggingface_hub import constants

    def head(*_, **__):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_session", lambda: types.SimpleNamespace(head=head))
    with pytest.raises(InputError, match=r"'openai/gsm8k' is not in the cache and the hub is out of reach \(Name"):
        load_task("gsm8k")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"'nyu-mll/glue' is not in the cache and HF_HUB_OFFLINE is set; .*local file"):
        load_task("cola")
    assert hub["requests"] == []


def test_a_cached_dataset_needs_no_connection(hub, monkeypatch, tmp_path):
    from datasets import Dataset
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "openai___gsm8k").mkdir()
    hub["openai/gsm8k", "main"] = {"train": Dataset.from_list(gsm8k(40)), "test": Dataset.from_list(gsm8k(3, 90))}
    check_gsm8k(load_task("gsm8k"), 40, 3)


# --------------------------------------------------------------------------------------------------------- names


def test_generated_and_external_tasks_are_separate():
    assert set(TASKS) == {"word-problems", "entailment"}
    assert not set(TASKS) & set(EXTERNAL_TASKS)
    assert set(EXTERNAL_TASKS) == {"gsm8k", "metamath", *GLUE, "own"}
    for name in [*TASKS, *EXTERNAL_TASKS]:
        check_task(name, None)
    check_task("entailment", "hard")
    with pytest.raises(InputError, match="task='gsm8k'"):
        first_items("gsm8k", 3)


def test_kind_and_metric_of_the_generated_tasks():
    words, facts = load_task("word-problems"), load_task("entailment")
    assert (words.kind, words.head, words.metric) == ("text", 0, "exact match of the final number")
    assert (facts.kind, facts.head, facts.metric) == ("choice", 0, "accuracy of the next token")


def test_a_cell_that_is_zero_is_not_an_empty_cell(tmp_path):
    cells = [0, 0.0, "0", "", None, 7, "x"]
    rows = [{"instruction": f"Double it, {i}.", "input": cell, "output": "y"} for i, cell in enumerate(cells * 4)]
    del rows[4]["input"]
    task = load_task("own", jsonl(tmp_path / "own.jsonl", rows))
    prompts = {p for split in (task.train, task.validation, task.test) for p in split["prompt"]}
    endings = ["\n0", "\n0.0", "\n0", "", "", "\n7", "\nx"]
    assert prompts == {f"Double it, {i}.{endings[i % 7]}" for i in range(len(rows))}


@pytest.mark.parametrize("cell", [True, [1], {"a": 1}])
def test_an_input_that_is_neither_text_nor_a_number_is_named(cell, tmp_path):
    rows = [{"instruction": f"Double it, {i}.", "input": "1", "output": "y"} for i in range(9)]
    rows[4]["input"] = cell
    with pytest.raises(InputError, match=r"row 5: input=.* must be text, a number, or left out"):
        load_task("own", jsonl(tmp_path / "own.jsonl", rows))


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_an_input_that_is_not_a_number_is_missing(ending, tmp_path):
    """Pandas writes NaN for a missing cell."""
    rows = [
        {"instruction": f"Double it, {i}.", "input": math.nan if i % 2 else 1.5, "output": "y"} for i in range(9)
    ]  # fmt: skip
    file = tmp_path / f"own.{ending}"
    if ending == "json":
        file.write_text(json.dumps(rows))
    else:
        (parquet if ending == "parquet" else jsonl)(file, rows)
    task = load_task("own", file)
    prompts = {p for split in (task.train, task.validation, task.test) for p in split["prompt"]}
    assert prompts == {f"Double it, {i}." + ("" if i % 2 else "\n1.5") for i in range(9)}


@pytest.mark.parametrize("cell", ["Infinity", "-Infinity", "1e400", "-1e400"])
def test_an_infinite_input_is_named(cell, tmp_path):
    row = '{"instruction": "Double it, %d.", "input": %s, "output": "y"}\n'
    (tmp_path / "own.jsonl").write_text("".join(row % (i, cell if i == 4 else 1) for i in range(9)))
    with pytest.raises(InputError, match=r"own\.jsonl, row 5: input=-?inf must be text, a finite number, .*as text"):
        load_task("own", tmp_path / "own.jsonl")


@pytest.mark.parametrize("column", ["prompt", "target"])
def test_a_text_that_is_not_a_number_or_infinite_is_named(column, tmp_path):
    for cell in (math.nan, math.inf):
        rows = pairs("prompt", "target", 9)
        rows[2][column] = cell
        with pytest.raises(InputError, match=rf"row 3: '{column}' is (nan|inf) \(float\); it must be text"):
            load_task("own", jsonl(tmp_path / "own.jsonl", rows))


@pytest.mark.parametrize("twice", ["prompt", "target", "note"])
def test_a_parquet_file_with_a_column_twice_is_named(twice, tmp_path):
    import pyarrow
    from pyarrow import parquet as pyarrow_parquet

    names = ["prompt", "target", "note", twice]
    cells = [pyarrow.array([f"{i} {row}" for row in range(9)]) for i in range(4)]
    pyarrow_parquet.write_table(pyarrow.Table.from_arrays(cells, names), tmp_path / "own.parquet")
    with pytest.raises(InputError, match=rf"own\.parquet names a column twice \({', '.join(names)}\); rename one"):
        load_task("own", tmp_path / "own.parquet")


@pytest.mark.parametrize("name", ["gsm8k", "metamath", "sst2"])
def test_an_empty_place_is_not_the_default_place(name):
    with pytest.raises(InputError, match=r"data=''|does not exist"):
        load_task(name, "")
