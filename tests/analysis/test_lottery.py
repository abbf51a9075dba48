"""NLoRA's start under other numberings of the neurons."""

from __future__ import annotations

import pytest
import torch
from factories import recorded_run, tiny_llama

from nlora_lab.analysis.lottery import start_lottery, start_sizes
from nlora_lab.analysis.reproduction import repetition_noise
from nlora_lab.core.errors import InputError
from nlora_lab.models.layers import linear_layers
from nlora_lab.models.loading import load_model
from nlora_lab.models.symmetry import renumber
from nlora_lab.runs.run import Run


def of_model(model, lr=2e-4, seed=0, **settings):
    """A recorded run of a model that need not be on this machine."""
    text = recorded_run(lr, seed, method="nlora", steps=250, **settings).to_json()
    assert '"embedded"' in text
    return Run.from_json(text.replace('"embedded"', f'"{model}"'))


def of_copy(number, *args, **settings):
    return of_model(f"renumbered-{number}" if number else "embedded", *args, **settings)


def test_sizes_are_norms_of_the_inverse_of_the_leading_block():
    torch.manual_seed(0)
    model = tiny_llama()
    sizes = start_sizes(model, [1, 3])
    for rank in (1, 3):
        blocks = [m.weight.detach()[:rank, :rank].double() for m in linear_layers(model).values()]
        norms = torch.stack([torch.linalg.inv(block).norm() for block in blocks])
        assert sizes["largest"][rank] == pytest.approx(float(norms.max()), rel=1e-3)
        assert sizes["size"][rank] == pytest.approx(float(norms.square().mean().sqrt()), rel=1e-3)
    with pytest.raises(InputError, match="rank"):
        start_sizes(model, [0])


def test_a_row_is_a_numbering_at_a_rank_at_the_best_of_its_rates():
    runs = [
        of_copy(0, accuracy=0.4, validation=0.1),
        of_copy(2, accuracy=0.5, validation=0.3),
        of_copy(2, 5e-4, accuracy=0.9, validation=0.2),
        of_copy(2, rank=4, accuracy=0.6, validation=0.2),
    ]
    table = start_lottery(runs).set_index(["numbering", "rank"])
    assert list(table.index) == [(0, 8), (2, 4), (2, 8)]
    assert table.loc[(2, 8), ["rate", "rates", "accuracy"]].tolist() == [5e-4, 2, 0.9]
    assert start_lottery(runs, rate=2e-4).set_index(["numbering", "rank"]).loc[(2, 8), "accuracy"] == 0.5
    with pytest.raises(InputError, match=r"at rate=0\.1"):
        start_lottery(runs, rate=0.1)
    model, _ = load_model()
    renumber(model, 2)
    assert table.loc[(2, 8), "size"] == pytest.approx(start_sizes(model, [8])["size"][8])
    assert table.loc[(0, 8), "size"] != pytest.approx(table.loc[(2, 8), "size"], rel=0.01)
    assert table.loc[(0, 8), "validation_loss"] == 0.1


def test_runs_of_other_questions_stay_out():
    others = [
        of_copy(1, replicate=1), of_copy(1, task="entailment"), of_copy(1, seed=1), of_model("renumbered-x"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="no run of a renumbered copy"):
        start_lottery([of_copy(0), *others])


def test_runs_of_a_copy_that_is_not_here_leave_the_noise_of_the_embedded_model_alone():
    """Their configs cannot be made again, because their model is not on this machine."""
    embedded = [of_copy(0, accuracy=accuracy, replicate=k) for k, accuracy in ((0, 0.4), (1, 0.5))]
    assert repetition_noise([*embedded, of_copy(1)]).equals(repetition_noise(embedded))
