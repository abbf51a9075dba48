"""The plan of the study: what it asks for is allowed, and its fresh seeds are fresh."""

import pytest

from nlora_lab.runs.store import RunStore, run_key
from tools import study


@pytest.mark.parametrize("part", [name for name, make in study.PARTS.items() if make is not study.lottery])
def test_every_part_asks_for_different_runs_on_the_cpu(part):
    configs = study.PARTS[part]()
    assert configs
    assert len({run_key(cfg) for cfg in configs}) == len(configs)
    assert {cfg.device for cfg in configs} == {"cpu"}


def test_no_rate_was_chosen_on_a_fresh_seed():
    assert not set(study.FRESH_SEEDS) & {*study.LADDER_SEEDS, *study.FIRST_SEEDS}
    assert {cfg.lr for cfg in study.fresh_seeds()} == set(study.CHOSEN.values())


def test_repetitions_are_of_recorded_runs_and_stay_the_same_with_more_records():
    records = {run_key(run.config) for run in RunStore(study.STORE)}
    repeated = study.repeated_records()
    firsts = [study.replace(cfg, replicate=0) for cfg in repeated]
    assert {run_key(cfg) for cfg in firsts} <= records
    assert len({cfg.method for cfg in repeated}) >= 8
    assert len({cfg.task for cfg in repeated}) == 2


def test_the_plane_of_two_rates_leaves_out_the_diagonal_and_has_no_rounded_rates():
    for cfg in study.lora_plus():
        assert cfg.lr_ratio != 1
        assert float(f"{cfg.lr * cfg.lr_ratio:.6g}") in study.LORA_PLUS_B
