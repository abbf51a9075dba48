"""The picture of an example: what is given, what is to be learnt."""

from __future__ import annotations

from dataclasses import replace

import pytest

import nlora_lab as nl


def test_the_target_is_to_be_learnt_and_the_prompt_is_not(embedded):
    task = nl.load_task("word-problems")
    for row in (0, 5):
        seen = nl.training.tokens_of(task, embedded[1], row)
        parts = {asked: "".join(seen._select(asked)) for asked in (True, False)}
        assert parts[True] == task.train[row]["target"] + "</s>"
        assert parts[False] == "<s>" + task.train[row]["prompt"]
        assert repr(seen).count("\n") == 1
        assert seen._repr_html_().count("border-bottom") == sum(seen.learned)


def test_a_run_brings_its_own_tokenizer_and_limit():
    seen = nl.training.tokens_of(nl.RunConfig(max_length=24))
    assert len(seen.texts) == 24
    assert seen.texts[-1] == "</s>"


def test_what_cannot_be_shown_is_named(embedded):
    task = nl.load_task("word-problems")
    with pytest.raises(nl.InputError, match="row=6400"):
        nl.training.tokens_of(task, embedded[1], 6400)
    with pytest.raises(nl.InputError, match="no tokenizer"):
        nl.training.tokens_of(task)
    with pytest.raises(nl.InputError, match="a classifier's"):
        nl.training.tokens_of(replace(task, kind="score"), embedded[1])
