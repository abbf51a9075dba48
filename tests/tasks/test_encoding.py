"""Encoding, cutting, packing and batching of rows."""

from __future__ import annotations

import copy

import pytest
import torch
from factories import tiny_llama

from nlora_lab.core.errors import InputError
from nlora_lab.tasks.batches import BatchOrder, Collate, training_batches
from nlora_lab.tasks.encoding import IGNORED, Encoded, encode, encode_task, last_tokens, pack, prompt_ids, prompt_texts
from nlora_lab.tasks.generated import TASKS
from nlora_lab.tasks.registry import load_task
from nlora_lab.tasks.task import Task

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}Q: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)
TEXTS = [
    {"prompt": "Question: Ana has 3 pears.\nAnswer:", "target": " 3 pears, é\n#### 3", "answer": "3"},
    {"prompt": "Q?", "target": "\tno", "answer": "no"},
    {"prompt": "a b c d e f g h i j k l m n o p", "target": " one", "answer": "one"},
]


def dataset(rows):
    from datasets import Dataset

    return Dataset.from_list(rows)


def task_for(rows, **changes):
    rows = dataset(rows)
    return Task("mine", "", rows, rows, rows, **changes)


@pytest.fixture
def llama(embedded):
    return copy.deepcopy(embedded[1])


@pytest.fixture
def talkative(llama):
    llama.chat_template = TEMPLATE
    return llama


@pytest.fixture(scope="module")
def wordpiece():
    """A BERT tokenizer with a few words and pieces of words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "pear", "##s", "is", "are", "green", "not", "##ish"]
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


PAIRS = [
    {"text": "the pears are green", "pair": "the pear is greenish", "label": 1},
    {"text": "the pear", "pair": "not green", "label": 0},
]


# ------------------------------------------------------------------------------------------------ encoding of text


@pytest.mark.parametrize("name", list(TASKS))
def test_encode_task_equals_encode_for_generated_tasks(embedded, name):
    _, tokenizer = embedded
    task = load_task(name)
    encoded = encode_task(task.test, task, tokenizer)
    assert encoded.rows == encode(task.test, tokenizer)
    assert (encoded.cut, encoded.longest) == (0, max(len(row["input_ids"]) for row in encoded.rows))
    assert encode_task(task.test, task, tokenizer, 512) == encoded


def learned(row, tokenizer):
    return tokenizer.decode([i for i in row["labels"] if i != IGNORED])


def test_only_the_target_is_learned_token_by_token(llama):
    task = task_for(TEXTS)
    for row, item in zip(encode_task(task.train, task, llama).rows, TEXTS, strict=True):
        prompt = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED]
        assert llama.decode(prompt) == f"<s>{item['prompt']}"
        assert learned(row, llama) == f"{item['target']}</s>"
        targets = [(i, label) for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
        assert all(i == label for i, label in targets)


def test_with_a_chat_template_only_the_target_is_learned_and_s_comes_once(talkative):
    task = task_for(TEXTS, chat=True)
    for row, item in zip(encode_task(task.train, task, talkative).rows, TEXTS, strict=True):
        prompt = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED]
        assert talkative.decode(prompt) == f"<s>Q: {item['prompt']}\nA: "
        assert learned(row, talkative) == f"{item['target'].strip()}</s>"
        assert row["input_ids"].count(talkative.bos_token_id) == 1


def test_without_a_template_or_without_chat_prompts_are_plain(llama, talkative):
    silent, plain = task_for(TEXTS, chat=True), task_for(TEXTS)
    without = copy.deepcopy(llama)
    without.chat_template = None
    assert encode_task(silent.train, silent, without) == encode_task(plain.train, plain, talkative)


def test_a_prompt_loses_its_beginning_and_the_target_stays(llama):
    task = task_for(TEXTS)
    whole, cut = (encode_task(task.train, task, llama, limit) for limit in (None, 14))
    assert whole.longest > 14 == cut.longest
    assert cut.cut == sum(len(row["input_ids"]) > 14 for row in whole.rows) == 2
    before, after = whole.rows[2], cut.rows[2]
    answer = [i for i in before["labels"] if i != IGNORED]
    room = 14 - len(answer)
    assert after["input_ids"] == [
        llama.bos_token_id, *before["input_ids"][: -len(answer)][-(room - 1) :], *answer,
    ]  # fmt: skip
    assert after["labels"] == [IGNORED] * room + answer
    assert cut.rows[1] == whole.rows[1]


def test_a_target_that_is_too_long_alone_loses_its_end(llama):
    task = task_for(TEXTS)
    whole, cut = encode_task(task.train, task, llama).rows[0], encode_task(task.train, task, llama, 5).rows[0]
    answer = [i for i in whole["labels"] if i != IGNORED]
    assert len(answer) > 5
    assert cut["labels"] == [IGNORED, *answer[:4]]
    assert cut["input_ids"] == [whole["input_ids"][-len(answer) - 1], *answer[:4]]


def test_a_target_without_a_token_is_named(talkative):
    rows = [TEXTS[0], {"prompt": "b", "target": "  ", "answer": "c"}]
    task = task_for(rows, chat=True)
    with pytest.raises(InputError, match="task 'mine', row 2: the target '' has no token to learn; leave the row out"):
        encode_task(task.train, task, talkative)
    with pytest.raises(InputError, match="max_length=1 must be a whole number of at least 2; leave room for a target"):
        encode_task(task.train, task, talkative, 1)


def test_the_last_tokens_keep_the_start(llama):
    bos = llama.bos_token_id
    assert last_tokens([bos, 5, 6, 7], 3, llama) == [bos, 6, 7]
    assert last_tokens([bos, 5, 6, 7], 4, llama) == [bos, 5, 6, 7]
    assert last_tokens([bos, 5, 6, 7], 1, llama) == [7]
    assert last_tokens([4, 5, 6, 7], 2, llama) == [6, 7]
    assert prompt_ids(["a b c d"], llama, limit=2)[0] == [bos, llama("a b c d")["input_ids"][-1]]


# ----------------------------------------------------------------------------------------------- for a classifier


def test_a_pair_is_encoded_by_the_tokenizer(wordpiece):
    task = task_for(PAIRS, kind="classes", labels=("no", "yes"))
    encoded = encode_task(task.train, task, wordpiece)
    first = encoded.rows[0]
    words = wordpiece.convert_ids_to_tokens(first["input_ids"])
    assert words == "[CLS] the pear ##s are green [SEP] the pear is green ##ish [SEP]".split()
    assert first["token_type_ids"] == [0] * 7 + [1] * 6
    assert [row["labels"] for row in encoded.rows] == [1, 0]
    assert (encoded.cut, encoded.longest) == (0, 13)

    batch = Collate(wordpiece.pad_token_id)(encoded.rows)
    assert batch["labels"].tolist() == [1, 0]
    assert batch["labels"].dtype == torch.int64
    assert batch["token_type_ids"].tolist()[1] == [0] * 4 + [1] * 3 + [0] * 6
    assert batch["attention_mask"].tolist()[1] == [1] * 7 + [0] * 6
    assert batch["input_ids"].tolist()[1][7:] == [wordpiece.pad_token_id] * 6


def test_texts_too_long_for_a_classifier_are_cut_by_the_tokenizer(wordpiece):
    task = task_for(PAIRS, kind="classes", labels=("no", "yes"))
    encoded = encode_task(task.train, task, wordpiece, 9)
    expected = wordpiece(PAIRS[0]["text"], PAIRS[0]["pair"], truncation=True, max_length=9)
    assert encoded.rows[0]["input_ids"] == expected["input_ids"]
    assert encoded.rows[0]["token_type_ids"] == expected["token_type_ids"]
    assert (encoded.cut, encoded.longest) == (1, 9)


def test_single_texts_and_scores(wordpiece):
    rows = [{"text": "the pear", "pair": "", "label": 2.5}, {"text": "green", "pair": "", "label": 0.0}]
    task = task_for(rows, kind="score")
    encoded = encode_task(task.train, task, wordpiece)
    assert wordpiece.convert_ids_to_tokens(encoded.rows[0]["input_ids"]) == "[CLS] the pear [SEP]".split()
    batch = Collate(0)(encoded.rows)
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [2.5, 0.0]


def test_a_text_without_a_token_is_named():
    rows = [{"text": "a", "pair": "", "label": 0}, {"text": "", "pair": "", "label": 0}]
    task = task_for(rows, kind="classes", labels=("no", "yes"))

    def bare(texts, pairs=None, **_):
        return {"input_ids": [list(map(ord, text)) for text in texts]}

    with pytest.raises(InputError, match="row 2: the text '' has no token"):
        encode_task(task.train, task, bare)


# ---------------------------------------------------------------------------------------------------------- packing


def examples(*lengths):
    rng = torch.Generator().manual_seed(5)
    rows = []
    for length in lengths:
        ids = torch.randint(3, 97, (length,), generator=rng).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORED] * (length // 2) + ids[length // 2 :]})
    return Encoded(rows, 1, max(lengths))


def test_each_example_goes_to_the_first_row_with_room():
    packed = pack(examples(6, 5, 3, 4, 1, 9, 1), 10)
    assert [row["position_ids"] for row in packed.rows] == [
        [*range(6), *range(3), *range(1)], [*range(5), *range(4), *range(1)], [*range(9)],
    ]  # fmt: skip
    assert (packed.cut, packed.longest) == (1, 10)
    assert packed == pack(examples(6, 5, 3, 4, 1, 9, 1), 10)


def test_packing_keeps_every_token_and_predicts_no_example_from_another():
    encoded = examples(1, 6, 5, 3, 4, 1, 9, 1)
    packed = pack(encoded, 12)
    before = sorted(tuple(row["input_ids"]) for row in encoded.rows)
    after, labels = [], {}
    for row in packed.rows:
        starts = [i for i, position in enumerate(row["position_ids"]) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(row["input_ids"])], strict=True):
            after.append(tuple(row["input_ids"][start:end]))
            labels[after[-1]] = row["labels"][start:end]
    assert sorted(after) == before
    for row in encoded.rows:
        assert labels[tuple(row["input_ids"])] == [IGNORED, *row["labels"][1:]]


def test_many_examples_are_packed_tightly():
    lengths = [1 + i * 7 % 60 for i in range(3000)]
    packed = pack(examples(*lengths), 128)
    assert len(packed.rows) < 1.03 * sum(lengths) / 128


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [False, True])
def test_in_a_packed_row_no_example_sees_another(attention, training):
    torch.manual_seed(0)
    model = tiny_llama(attn_implementation=attention).train(training)
    encoded = examples(7, 5, 1, 4, 11)
    packed = pack(encoded, 20)
    batch = Collate(0)(packed.rows)
    assert len(packed.rows) == 2
    assert batch["input_ids"].shape == (2, 17)  # the second row is padded
    assert "attention_mask" not in batch
    assert batch["labels"][1, 11:].tolist() == [IGNORED] * 6
    assert batch["position_ids"][1, 11:].tolist() == [*range(6)]
    with torch.no_grad():
        output = model(**batch)
        places = {7: (0, 0), 5: (0, 7), 1: (0, 12), 4: (0, 13), 11: (1, 0)}
        total = 0.0
        for row in encoded.rows:
            length = len(row["input_ids"])
            line, start = places[length]
            alone = model(torch.tensor([row["input_ids"]])).logits[0]
            torch.testing.assert_close(output.logits[line, start : start + length], alone, atol=1e-5, rtol=1e-5)
            shifted = torch.tensor(row["labels"][1:], dtype=torch.int64)
            total += float(
                torch.nn.functional.cross_entropy(alone[:-1], shifted, ignore_index=IGNORED, reduction="sum")
            )
    counted = int((batch["labels"] != IGNORED).sum())
    assert float(output.loss) == pytest.approx(total / counted, rel=1e-5)


def test_packed_batches_reach_the_model_through_accelerate(embedded):
    from accelerate import Accelerator

    _, tokenizer = embedded
    task = load_task("entailment")
    encoded = pack(encode_task(task.train.select(range(40)), task, tokenizer), 100)
    order = BatchOrder(len(encoded), 2, 3, 0)
    batches = list(Accelerator(cpu=True).prepare(training_batches(encoded, tokenizer, order)))
    for rows, batch in zip(order, batches, strict=True):
        expected = Collate(tokenizer.pad_token_id)([encoded.rows[i] for i in rows])
        assert batch.keys() == expected.keys()
        assert torch.equal(batch["position_ids"], expected["position_ids"])
        assert batch["use_cache"] is False


def test_rows_that_cannot_be_packed_are_named():
    with pytest.raises(InputError, match="example 2 has 9 tokens and a packed row 8; encode with max_length=8"):
        pack(examples(3, 9), 8)
    with pytest.raises(InputError, match="a classifier reads one example per row"):
        pack(Encoded([{"input_ids": [1], "labels": 0}], 0, 1), 8)


def test_a_model_in_which_packed_examples_see_one_another_is_found_out(embedded):
    from types import SimpleNamespace

    from transformers import BloomConfig, BloomForCausalLM, OPTConfig, OPTForCausalLM

    from nlora_lab.training.data import check_packing

    data = SimpleNamespace(tokenizer=range(97), cfg=SimpleNamespace(model="a/b"))
    check_packing(tiny_llama(), data)
    torch.manual_seed(0)
    opt = OPTForCausalLM(OPTConfig(
        vocab_size=97, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=64, init_std=0.3,
    ))  # fmt: skip
    bloom = BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3))
    for model in (opt, bloom):
        with pytest.raises(InputError, match="see one another"):
            check_packing(model, data)


@pytest.mark.parametrize("template", ["<s> $A </s>", "$A </s>", "<s> <s> $A </s> </s>"])
def test_a_prompt_is_the_same_whatever_the_tokenizer_puts_after_a_text(llama, template):
    """The prompt of an answer is the beginning of the row that was trained, and does not end with ``</s>``."""
    from tokenizers.processors import TemplateProcessing

    start = template.count("<s>")
    llama._tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    plain = llama([row["prompt"] for row in TEXTS], add_special_tokens=False)["input_ids"]
    prompts = prompt_ids([row["prompt"] for row in TEXTS], llama)
    assert prompts == [[1] * start + ids for ids in plain]
    for rows in (encode_task(dataset(TEXTS), task_for(TEXTS), llama).rows, encode(dataset(TEXTS), llama)):
        for row, prompt in zip(rows, prompts, strict=True):
            assert row["input_ids"][: len(prompt)] == prompt
            assert row["labels"][len(prompt)] != IGNORED
            assert row["input_ids"].count(2) == 1


@pytest.mark.parametrize("template", ["$A", "<s> $A </s>", "$A </s>", "<s> $A", "<s> <s> $A </s> </s>"])
@pytest.mark.parametrize("unknown", [None, "<s>", "</s>"])
@pytest.mark.parametrize("letters", ["0123456789+=", "٠١٢٣٤٥٦٧٨٩+="])
def test_the_end_of_a_prompt_is_found_without_the_letters_of_english(template, unknown, letters):
    """A tokenizer of an alphabet of its own has no token for the letter a, or an ``<s>`` in its place."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<pad>", *letters]
    tokens = Tokenizer(BPE({word: i for i, word in enumerate(words)}, [], unk_token=unknown))
    tokens.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    start = [0] * template.count("<s>")
    for texts in ([letters[1:4] + "+"], ["", letters[:2]], ["<s>", "</s>", letters[3] * 5], ["<s></s>", letters[4]]):
        plain = tokenizer(texts, add_special_tokens=False)["input_ids"]
        assert prompt_ids(texts, tokenizer) == [start + ids for ids in plain]


@pytest.mark.parametrize("prompt", ["<s>", "</s>", "<s> </s>", "a", "aaaa", ""])
def test_one_prompt_alone_keeps_its_tokens(llama, prompt):
    from tokenizers.processors import TemplateProcessing

    llama._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )  # fmt: skip
    assert prompt_ids([prompt], llama) == [[1, *llama(prompt, add_special_tokens=False)["input_ids"]]]


PARTS = (
    "{{ bos_token }}{% for m in messages %}Q: {% for part in m['content'] %}{% if part is mapping and "
    "part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '\\n' }}{% endfor %}A:"
)


@pytest.mark.parametrize(
    "template",
    [
        PARTS,
        PARTS.replace("part is mapping and ", ""),  # fails on the letters of a text
        {"default": PARTS, "tools": "{{ 1 }}"},
    ],
)
def test_a_chat_template_that_wants_parts_gets_parts(llama, template):
    llama.chat_template = template
    prompts = [row["prompt"] for row in TEXTS]
    assert prompt_texts(prompts, llama, True) == [f"<s>Q: {prompt}\nA:" for prompt in prompts]


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no user here') }}", "{% for %}", "", "A:", "{{ messages[3].content }}", "{{ nothing.x }}",
        {"tools": TEMPLATE}, "{{ messages[0]['content'][:3] }}", "{{ messages[0]['content'] | upper }}",
    ],
)  # fmt: skip
def test_a_chat_template_that_loses_the_prompt_is_an_input_error(llama, template):
    llama.chat_template = template
    with pytest.raises(InputError, match=r"the chat template of the tokenizer cannot be used \(.*remove it"):
        prompt_texts(["Question: Ana has 3 pears.\nAnswer:"], llama, True)


@pytest.mark.parametrize("prompt", ["user", "You are", "a", " help ", "text"])
@pytest.mark.parametrize(
    "template",
    [
        "You are a user helper, text in, text out", "{{ messages[0]['content'][:4] }} You are a user helper, text",
        "You are a user helper{% if messages[0]['content'] is not string %}{{ messages[0]['content'] }}{% endif %}",
        "{% if messages[0]['content'] is not string %}{{ messages[0]['content'] | tojson }} You are help{% endif %}",
        "{% if messages[0]['content'] is not string %}{{ messages[0]['content'] | e }} You are help{% endif %}",
        "{% for part in messages[0]['content'] if part is mapping %}{{ part }} You are help, user{% endfor %}",
    ],
)  # fmt: skip
def test_a_prompt_that_occurs_in_the_words_of_the_template_is_lost_too(llama, template, prompt):
    llama.chat_template = template
    with pytest.raises(
        InputError, match=r"template of the tokenizer cannot be used \(it (leaves out|prints).*remove it"
    ):
        prompt_texts([prompt], llama, True)


@pytest.mark.parametrize("prompt", ["user", "{'type': 'text', 'text': 'a'}", "[1]"])
@pytest.mark.parametrize("template", [PARTS.replace("Q: ", "user: "), TEMPLATE.replace("Q: ", "user: ")])
def test_a_prompt_may_hold_words_of_the_template_and_of_lists(llama, template, prompt):
    llama.chat_template = template
    assert prompt_texts([prompt], llama, True)[0].startswith(f"<s>user: {prompt}\n")


def test_a_chat_template_may_trim_the_prompt(llama):
    llama.chat_template = "{{ messages[0]['content'] | trim }} A:"
    assert prompt_texts([" Why? "], llama, True) == ["Why? A:"]
