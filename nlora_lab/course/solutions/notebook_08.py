"""The exercises of notebook 08, with their solutions and with hints for typical mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from nlora_lab.course.exercises import Exercise, Mistake, Question


def _models() -> list[tuple[int, int]]:
    """LLaMA-2-7B with NLoRA at rank 128, SmolLM2-135M with LoRA at rank 8, and full fine-tuning of a small model."""
    return [(6_738_415_616, 323_485_696), (134_515_008, 2_442_240), (1_000_000, 1_000_000)]


def memory(frozen: int, trained: int) -> int:
    """Add two bytes per frozen weight and 4·4 per trained number: itself, its gradient and Adam's two means."""
    return 2 * frozen + 16 * trained


def _losses_and_tokens() -> list[tuple[Sequence[float], Sequence[int]]]:
    """Two parts of a batch, one with long answers and one with short ones, then four parts, then two equal parts."""
    return [([1.0, 3.0], [900, 100]), ([0.5, 2.0, 1.0, 4.0], [10, 400, 90, 2]), ([2.0, 1.0], [50, 50])]


def batch_loss(losses: Sequence[float], tokens: Sequence[int]) -> float:
    """Return the mean over all tokens: weight the mean of each part by its number of tokens."""
    return sum(loss * n for loss, n in zip(losses, tokens, strict=True)) / sum(tokens)


SHAPES = ((4096, 4096, 8), (11008, 4096, 64), (4096, 11008, 16))  # matrices of LLaMA-2-7B, each with a rank


def _matrices() -> list[tuple[Any, ...]]:
    """Every matrix with every kind of adapter."""
    return [(m, n, r, kind) for m, n, r in SHAPES for kind in ("lora", "dora", "qlora")]


def adapter_memory(m: int, n: int, r: int, kind: str) -> float:
    """Add the frozen weight in its format to 16 bytes for each trained number."""
    trained = r * (m + n) + (m if kind == "dora" else 0)
    frozen = m * n / 2 + m * n / 64 * 4 if kind == "qlora" else 2 * m * n
    return frozen + 16 * trained


def _without(
    m: int, n: int, r: int, kind: str, *, constants: float = 4.0, lengths: float = 1.0, bits: float = 4
) -> float:
    """The memory with another size of the constants, other lengths of DoRA, or other bits per frozen number."""
    frozen = m * n * bits / 8 + m * n / 64 * constants if kind == "qlora" else 2 * m * n
    return frozen + 16 * (r * (m + n) + (lengths * m if kind == "dora" else 0))


Tried = Mapping[str, Mapping[float, float]]
"""The validation losses of seed 0 at each rate, by method."""
LADDER = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)


def _first_stages() -> list[tuple[Tried, Sequence[float]]]:
    """Losses of a first stage: a best rate inside, at the low end, at the high end, and at an end of the ladder."""
    return [
        (
            {
                "lora": {1e-3: 0.4, 2e-3: 0.2, 5e-3: 0.1},
                "slora": {1e-3: 0.5, 2e-3: 0.3, 5e-3: 0.6},
                "nlora": {2e-4: 0.2, 5e-4: 0.4, 1e-3: 0.9},
                "inttune": {2e-3: 0.5, 5e-3: 0.3, 1e-2: 0.2},
            },
            LADDER,
        ),
        (
            {
                "pissa": {1e-4: 0.3, 2e-4: 0.5, 5e-4: 0.7},
                "lora": {5e-4: 0.8, 1e-3: 0.2, 2e-3: 0.6},
                "olora": {1e-3: 0.7, 2e-3: 0.4, 5e-3: 0.3},
            },
            LADDER,
        ),
    ]


def next_runs(tried: Tried, ladder: Sequence[float]) -> list[tuple[str, float, int]]:
    """Widen the ladder where the best rate is at an end, and add four seeds where it is inside."""
    runs: list[tuple[str, float, int]] = []
    for method, losses in tried.items():
        best = min(losses, key=lambda rate: losses[rate])
        place = ladder.index(best) + (best == max(losses)) - (best == min(losses))
        at_an_end = best in (min(losses), max(losses))
        if at_an_end and 0 <= place < len(ladder):
            runs.append((method, ladder[place], 0))
        else:
            runs += [(method, best, seed) for seed in (1, 2, 3, 4)]
    return runs


def _only_seeds(tried: Tried, seeds: Sequence[int]) -> list[tuple[str, float, int]]:
    return [(method, min(losses, key=lambda r: losses[r]), s) for method, losses in tried.items() for s in seeds]


def _past_the_ladder(tried: Tried, ladder: Sequence[float]) -> list[tuple[str, float, int]]:
    """Widen at an end of the ladder too: an index of −1 is the other end."""
    runs: list[tuple[str, float, int]] = []
    for method, losses in tried.items():
        best = min(losses, key=lambda rate: losses[rate])
        if best in (min(losses), max(losses)):
            runs.append((method, ladder[ladder.index(best) + (1 if best == max(losses) else -1)], 0))
        else:
            runs += [(method, best, seed) for seed in (1, 2, 3, 4)]
    return runs


def _at_the_end_itself(tried: Tried, ladder: Sequence[float]) -> list[tuple[str, float, int]]:
    return [
        run if run[2] else (run[0], min(tried[run[0]], key=lambda r: tried[run[0]][r]), 0)
        for run in next_runs(tried, ladder)
    ]


def _turned(tried: Tried, ladder: Sequence[float]) -> list[tuple[str, float, int]]:
    """Take the highest loss for the best."""
    return next_runs({method: {r: -v for r, v in losses.items()} for method, losses in tried.items()}, ladder)


# a mistake and its hint are one paragraph here, not five lines
# fmt: off
EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "8.1",
        "bytes for a run",
        "Write memory(frozen, trained): the bytes that the numbers of a run take, before any activation. The frozen\n"
        "weights are kept in bfloat16. Each trained number is kept in float32, and so are its gradient and the two\n"
        "running means that Adam keeps for it (about 1 line).",
        memory,
        "Only a trained number needs the three companions. That is why a model fits that is too large for full "
        "fine-tuning. The size of the adapter itself matters less.",
        (
            Mistake(lambda frozen, trained: 2 * frozen + 4 * trained,
                "that counts only the trained number itself. Its gradient and Adam's two means are float32 too."),
            Mistake(lambda frozen, trained: 2 * frozen + 12 * trained,
                "one of the four is missing: the number itself, its gradient, and Adam's two means."),
            Mistake(lambda frozen, trained: 2 * frozen + 8 * trained,
                "float32 is four bytes, not two. There are four such numbers for each number that trains."),
            Mistake(lambda frozen, trained: 4 * frozen + 16 * trained,
                "the frozen weights are in bfloat16: two bytes each."),
            Mistake(lambda frozen, trained: 16 * (frozen + trained),
                "the frozen weights have neither gradient nor means. That is what freezing saves."),
            Mistake(lambda frozen, trained: frozen + 4 * trained,
                "that counts numbers. Give bytes."),
        ),
        inputs=_models,
        level="warm-up",
    ),
    Exercise(
        "8.2",
        "a mean in parts",
        "To save memory, a batch goes through the model in several parts. losses has the mean loss of the target\n"
        "tokens of each part, and tokens has their number. Write batch_loss(losses, tokens), the mean over all tokens\n"
        "of the batch (about 1 line).",
        batch_loss,
        "Each part counts by its tokens. If you average the parts equally, the tokens of a short answer get more "
        "weight than those of a long one. This is an easy mistake: transformers' Trainer made it until October 2024 "
        "(see its blog, Fixing Gradient Accumulation).",
        (
            Mistake(lambda losses, tokens: fmean(losses),
                "that is the mean of the means. A part with few tokens then counts as much as one with many."),
            Mistake(lambda losses, tokens: sum(losses),
                "that is the sum of the means."),
            Mistake(lambda losses, tokens: sum(loss * n for loss, n in zip(losses, tokens, strict=True)),
                "that is the sum over all tokens. Divide it by their number."),
            Mistake(lambda losses, tokens: sum(loss * n for loss, n in zip(losses, tokens, strict=True)) / len(losses),
                "you divided by the number of parts. Divide by the number of tokens."),
            Mistake(lambda losses, tokens: sum(loss / n for loss, n in zip(losses, tokens, strict=True)),
                "more tokens mean more weight. Multiply by them, do not divide."),
        ),
        inputs=_losses_and_tokens,
        level="understand",
    ),
    Exercise(
        "8.3",
        "bytes of three adapters",
        "One weight matrix is (m, n), with an adapter of rank r. Write adapter_memory(m, n, r, kind): the bytes of\n"
        "its numbers, without activations. Each trained number takes 16 bytes, as in 8.1. For 'lora' the frozen W is\n"
        "in bfloat16. 'dora' also trains one length per row of W. For 'qlora' W has 4 bits per number, and one\n"
        "float32 constant for each block of 64 numbers (about 3 lines).",
        adapter_memory,
        "4 bits and a constant of 32 bits per 64 numbers are 4.5 bits. QLoRA saves on the frozen weights, and DoRA "
        "adds next to nothing.",
        (
            Mistake(lambda m, n, r, kind: _without(m, n, r, kind, constants=0),
                "the constants of the blocks are missing: four bytes for every 64 numbers."),
            Mistake(lambda m, n, r, kind: _without(m, n, r, kind, constants=1),
                "a constant is float32: four bytes, not one."),
            Mistake(lambda m, n, r, kind: _without(m, n, r, kind, lengths=0),
                "DoRA's lengths are missing. They are trained: m numbers of 16 bytes each."),
            Mistake(lambda m, n, r, kind: _without(m, n, r, kind, lengths=n / m),
                "DoRA has one length per row of W. W has m rows, not n."),
            Mistake(lambda m, n, r, kind: _without(m, n, r, kind, bits=32),
                "4 bits are half a byte, not four bytes."),
            Mistake(lambda m, n, r, kind: _without(m, n, r, kind) - 16 * r * (m + n) + 4 * r * (m + n),
                "the adapter counts four times: the number, its gradient, and the two means of Adam."),
            Mistake(lambda m, n, r, kind: _without(m, n, r, kind, constants=4 * 64),
                "that is a constant for each number. There is one for each block of 64."),
        ),
        inputs=_matrices,
        level="understand",
    ),
    Exercise(
        "8.4",
        "the second stage of a sweep",
        "In the first stage of a sweep, each method had one run (seed 0) at a few neighbouring rates. tried maps\n"
        "each method to {rate: validation loss}. Write next_runs(tried, ladder): the list of (method, rate, seed) to\n"
        "make next (about 9 lines). ladder has all rates in rising order. If the best rate of a method is its lowest\n"
        "or its highest one, make one run with seed 0 at the next rate of the ladder beyond it. If the ladder ends\n"
        "there, or if the best rate is inside, make the seeds 1 to 4 at the best rate.",
        next_runs,
        "First find the bottom of each valley, then spend seeds on it. Seeds at an edge answer the wrong question.",
        (
            Mistake(lambda tried, ladder: _only_seeds(tried, (1, 2, 3, 4)),
                "a best rate at an end of what was tried may not be the best. Try the next rate first."),
            Mistake(lambda tried, ladder: _only_seeds(tried, (0, 1, 2, 3, 4)),
                "seed 0 is made already, and a best rate at an end needs the next rate first."),
            Mistake(_past_the_ladder,
                "the index leaves the ladder. Where the ladder ends, make the seeds 1 to 4."),
            Mistake(_at_the_end_itself,
                "that repeats the rate at the end. Go one rate beyond it."),
            Mistake(_turned,
                "that takes the highest loss for the best. Take the lowest."),
        ),
        inputs=_first_stages,
        level="build",
    ),
)
# fmt: on

QUESTIONS: tuple[Question, ...] = (
    Question(
        "8.Q1",
        "Each method over a ladder of rates that reaches beyond the bottom of its valley, one seed each. Then at\n"
        "least five seeds at the best rate of each method, and at the shared rate. A part of the training rows\n"
        "that no run trains on chooses the rates. The test set is used once, at the end. Before all that, look at\n"
        "the size of NLoRA's first step on this model.",
    ),
)
