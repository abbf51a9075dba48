"""Which output of a classifier stands for which class."""

from __future__ import annotations

import json

import pytest
import torch
from factories import folder_of, pairs, save_model, word_pieces, write_lines

import nlora_lab as nl
from nlora_lab.evaluation.scoring import measure
from nlora_lab.models.heads import class_names, class_order
from nlora_lab.models.loading import load_model
from nlora_lab.training.export import save_merged, tuned_model

NAMES = ("CONTRADICTION", "Neutral", "entailment")
MNLI = ("entailment", "neutral", "contradiction")


def save_classifier(name, folder, classes, **changes):
    """A tiny trained classifier whose config names its classes."""
    from transformers import AutoModelForSequenceClassification

    save_model(name, folder, word_pieces(roberta=name == "Roberta"), **changes)
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, id2label=dict(enumerate(classes)), label2id={c: i for i, c in enumerate(classes)}
    )
    model.save_pretrained(folder)
    return str(folder), model.eval()


@pytest.mark.parametrize(
    ("stored", "labels", "order"),
    [
        (NAMES, MNLI, [2, 1, 0]),
        (("not equivalent", "Equivalent"), ("not_equivalent", "equivalent"), [0, 1]),
        (("a", "b"), ("a", "c"), None),
        (("a", "A"), ("a", "a"), None),
        ((), ("a", "b"), None),
    ],
)
def test_classes_are_found_by_name(stored, labels, order):
    assert class_order(stored, labels) == order


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, ()),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}, ()),
        ({"id2label": {"1": "yes", "0": "no"}}, ("no", "yes")),
        ({"label2id": {"yes": 1, "no": 0}}, ("no", "yes")),
        ({"label2id": {"yes": "1", "no": "0"}}, ("no", "yes")),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"yes": 1, "no": 0}}, ("no", "yes")),
        ({"id2label": {"0": "LABEL_1", "1": "LABEL_0"}}, ("LABEL_1", "LABEL_0")),  # names that say another order
    ],
)
def test_names_are_read_wherever_a_config_has_them(config, names):
    assert class_names(config) == names


@pytest.mark.parametrize(
    "config",
    [
        {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 1, "yes": 0}},
        {"id2label": ["no", "yes"]},
        {"id2label": {"first": "no"}},
        {"label2id": {"no": "first"}},
        {"label2id": {"no": None}},
    ],
)
def test_names_that_contradict_each_other_are_refused(config):
    with pytest.raises(nl.InputError, match="id2label"):
        class_names(config)


@pytest.mark.parametrize("name", ["Bert", "Roberta", "DebertaV2", "Llama"])
def test_a_head_is_brought_into_the_order_of_the_task(name, tmp_path):
    folder, trained = save_classifier(name, tmp_path, NAMES)
    ids = torch.tensor([[2, 9, 8, 3]])
    with torch.no_grad():
        expected = trained(ids).logits
        model, _ = load_model(folder, head=3, labels=MNLI)
        assert torch.allclose(model(ids).logits, expected[:, [2, 1, 0]])
        assert torch.allclose(load_model(folder, head=3)[0](ids).logits, expected)
    assert model.config.id2label == dict(enumerate(MNLI))
    assert model.config.label2id["contradiction"] == 2


@pytest.fixture
def mnli(tmp_path):
    """MNLI in which every row has the class that the classifier gives it."""
    folder, trained = save_classifier("Bert", tmp_path / "model", NAMES, initializer_range=0.8)
    tokenizer = word_pieces()
    rows = [{"premise": row["sentence1"], "hypothesis": row["sentence2"]} for row in pairs(80)]
    for row in rows:
        inputs = tokenizer(row["premise"], row["hypothesis"], return_tensors="pt")
        row["label"] = MNLI.index(NAMES[int(trained(**inputs).logits.argmax())].lower())
    assert len({row["label"] for row in rows}) > 1
    write_lines(tmp_path / "data" / "train.jsonl", rows[:60])
    write_lines(tmp_path / "data" / "validation_matched.jsonl", rows[60:])
    return folder, str(tmp_path / "data")


def test_a_classifier_is_measured_by_the_names_of_its_classes(mnli):
    folder, data = mnli
    _, measures = nl.measure_saved(folder, nl.load_task("mnli", data))
    assert measures["accuracy"] == 1.0


def test_a_classifier_of_other_classes_is_not_measured(mnli, tmp_path):
    other, _ = save_classifier("Bert", tmp_path / "other", ("good", "bad", "so so"))
    with pytest.raises(nl.InputError, match="tells apart good, bad, so so, and the task 'mnli' asks for entailment"):
        nl.measure_saved(other, nl.load_task("mnli", mnli[1]))


@pytest.mark.parametrize("method", ["full", "nlora", "pissa"])
def test_every_export_and_record_names_the_classes(mnli, tmp_path, method):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder, data = mnli
    cfg = nl.RunConfig(method, rank=2, model=folder, task="mnli", data=data, steps=2, batch_size=4, lr=1e-4)
    run = nl.fine_tune(cfg)
    assert run.labels == MNLI
    assert type(run).from_json(run.to_json()).labels == MNLI
    expected = measure(*tuned_model(run), nl.load_task("mnli", data))[1]
    for form in ("peft", "merged") if method == "full" else ("peft", "lora", "merged"):
        saved = nl.save_adapter(run, tmp_path / form, form)
        assert AutoConfig.from_pretrained(saved).id2label == dict(enumerate(MNLI))
        is_model = form == "merged" or method == "full"
        task = nl.load_task("mnli", data)
        found = nl.measure_saved(str(saved), task) if is_model else nl.measure_saved(folder, task, saved)
        assert found[1] == expected
        if not is_model:
            merged = save_merged(saved, tmp_path / f"{form}-merged")
            model = AutoModelForSequenceClassification.from_pretrained(merged)
            assert model.config.id2label == dict(enumerate(MNLI))
            assert nl.measure_saved(str(merged), task)[1] == expected


FOREIGN = {
    "its own head": {"task_type": "SEQ_CLS", "target_modules": ["query"]},
    "the head of the base model": {"target_modules": ["query"]},
    "another module beside it": {"target_modules": ["query"], "modules_to_save": ["pooler"]},
    "biases": {"target_modules": ["query", "classifier"], "bias": "all"},
    "an update of the head": {"target_modules": ["classifier"]},
}


@pytest.mark.parametrize("what", list(FOREIGN))
def test_the_outputs_of_a_foreign_adapter_have_the_order_of_its_base_model(mnli, tmp_path, what):
    """Whatever an adapter does to the head, the measured class is that of the live model, by its config's names."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    folder, data = mnli
    base = AutoModelForSequenceClassification.from_pretrained(folder)
    model = get_peft_model(base, LoraConfig(r=2, **FOREIGN[what])).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "adapter")
    answers, _ = nl.measure_saved(folder, nl.load_task("mnli", data), tmp_path / "adapter")
    rows = (tmp_path / "data" / "validation_matched.jsonl").read_text().splitlines()
    tokenizer = word_pieces()
    for answer, row in zip(answers, map(json.loads, rows), strict=True):
        inputs = tokenizer(row["premise"], row["hypothesis"], return_tensors="pt")
        assert answer.text == NAMES[int(model(**inputs).logits.argmax())].lower()


@pytest.mark.parametrize("own_head", [True, False])
def test_an_adapter_does_not_hide_that_the_classes_are_other_ones(mnli, tmp_path, own_head):
    from peft import LoraConfig, get_peft_model

    other, model = save_classifier("Bert", tmp_path / "other", ("good", "bad", "so so"))
    config = LoraConfig(task_type="SEQ_CLS" if own_head else None, target_modules=["query"], r=2)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(nl.InputError, match="tells apart good, bad, so so"):
        nl.measure_saved(other, nl.load_task("mnli", mnli[1]), tmp_path / "adapter")


SEQ2SEQ = {
    "Bart": {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
             "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "d_model": 16, "max_position_embeddings": 80},
    "T5": {"num_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "d_ff": 16, "d_kv": 8, "d_model": 16,
           "decoder_start_token_id": 0},
}  # fmt: skip


def save_seq2seq(name, folder, tokenizer, end, **options):
    import transformers

    config = getattr(transformers, f"{name}Config")(
        vocab_size=500, eos_token_id=end, pad_token_id=1, **SEQ2SEQ[name], **options
    )
    torch.manual_seed(0)
    getattr(transformers, f"{name}ForSequenceClassification")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", list(SEQ2SEQ))
def test_a_classifier_that_reads_the_end_token_needs_one_in_every_text(name, tmp_path):
    data = folder_of(tmp_path / "data", pairs(40), "validation")
    task = nl.load_task("mrpc", data)
    good, bad = word_pieces(roberta=True), word_pieces(roberta=True)
    bad._tokenizer.post_processor = None
    folder = save_seq2seq(name, tmp_path / "good", good, good.eos_token_id, num_labels=2)
    assert 0 <= nl.measure_saved(folder, task)[1]["accuracy"] <= 1
    folder = save_seq2seq(name, tmp_path / "bad", bad, bad.eos_token_id, num_labels=2)
    with pytest.raises(nl.InputError, match=r"reads the end token of each text, and its tokenizer puts 0 of them"):
        nl.measure_saved(folder, task)
    with pytest.raises(nl.InputError, match=r"reads the end token of each text"):
        nl.fine_tune(nl.RunConfig("slora", rank=2, model=folder, task="mrpc", data=data, steps=1, batch_size=4))


@pytest.mark.parametrize("outputs", [0, 3])
def test_a_head_that_was_never_trained_for_the_task_is_not_measured(outputs, tmp_path):
    """A new head is random. Without a word, half of the answers would be right."""
    from transformers import AutoModelForSequenceClassification

    data = folder_of(tmp_path / "data", pairs(40), "validation")
    folder = save_model("Bert", tmp_path / "model", word_pieces())
    if outputs:
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=outputs).save_pretrained(folder)
    with pytest.raises(nl.InputError, match="has no trained head with 2 outputs for the task 'mrpc'"):
        nl.measure_saved(folder, nl.load_task("mrpc", data))


def test_a_plain_lora_of_a_folder_keeps_the_order_of_the_classes(mnli, tmp_path):
    folder, data = mnli
    made = {"task": "mnli", "data": data, "steps": 2, "batch_size": 4, "lr": 1e-4}
    run = nl.fine_tune(nl.RunConfig("nlora", rank=2, model=folder, **made))
    saved = nl.save_adapter(run, tmp_path / "peft")
    task = nl.load_task("mnli", data)
    expected = nl.measure_saved(folder, task, saved)[1]
    assert expected["accuracy"] > 0.5
    lora = nl.adapters.save_as_lora(saved, tmp_path / "lora")
    assert nl.measure_saved(folder, task, lora)[1] == expected
    merged = save_merged(lora, tmp_path / "merged")
    assert nl.measure_saved(str(merged), task)[1] == expected
