"""The questions of notebook 08, as those of :mod:`nlora_lab.course.solutions`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from nlora_lab.course.solutions import Exercise, Mistake


def _models() -> list[tuple[int, int]]:
    """LLaMA-2-7B with NLoRA at rank 128, SmolLM2-135M with LoRA at rank 8, and a model trained whole."""
    return [(6_738_415_616, 323_420_160), (134_515_008, 2_442_240), (1_000_000, 1_000_000)]


def memory(frozen: int, trained: int) -> int:
    """Two bytes for each frozen weight; for each trained number itself, its gradient and Adam's two, at four."""
    return 2 * frozen + 16 * trained


def _parts() -> list[tuple[Sequence[float], Sequence[int]]]:
    """Two parts of a batch, one of long answers and one of short ones; four; all alike."""
    return [([1.0, 3.0], [900, 100]), ([0.5, 2.0, 1.0, 4.0], [10, 400, 90, 2]), ([2.0, 1.0], [50, 50])]


def batch_loss(losses: Sequence[float], tokens: Sequence[int]) -> float:
    """The mean over all tokens: each part's mean counts by how many tokens it is of."""
    return sum(loss * n for loss, n in zip(losses, tokens, strict=True)) / sum(tokens)


# fmt: off
TABLE: tuple[Exercise, ...] = (
    Exercise(
        "8.1",
        "bytes for a run",
        "Write memory(frozen, trained): the bytes that the numbers of a run take, before any activation. The frozen\n"
        "weights are kept in bfloat16. Each trained number is kept in float32, and so are its gradient and the two\n"
        "running means that Adam keeps for it (about 1 line).",
        memory,
        "Only what is trained needs the three companions. That, and not the size of the adapter, is why a model "
        "fits that could not be trained whole.",
        (
            Mistake(lambda frozen, trained: 2 * frozen + 4 * trained,
                "that keeps what trains and nothing with it. Its gradient and Adam's two means are float32 too."),
            Mistake(lambda frozen, trained: 2 * frozen + 12 * trained,
                "one of the four is missing: the number itself, its gradient, and Adam's two means."),
            Mistake(lambda frozen, trained: 2 * frozen + 8 * trained,
                "float32 is four bytes, not two: there are four such numbers for each that trains."),
            Mistake(lambda frozen, trained: 4 * frozen + 16 * trained,
                "the frozen weights are in bfloat16: two bytes each."),
            Mistake(lambda frozen, trained: 16 * (frozen + trained),
                "the frozen weights have neither gradient nor means: that is what freezing saves."),
            Mistake(lambda frozen, trained: frozen + 4 * trained,
                "that counts numbers; bytes are asked for."),
        ),
        inputs=_models,
    ),
    Exercise(
        "8.2",
        "a mean in parts",
        "A batch goes through the model in several parts, to save memory. losses has the mean loss of each part's\n"
        "target tokens, tokens how many there were. Write batch_loss(losses, tokens), the mean over all tokens of the\n"
        "batch (about 1 line).",
        batch_loss,
        "A part counts by its tokens. Averaging the parts alike gives a short answer's tokens more weight than a long "
        "one's. An easy mistake: transformers' Trainer made it until October 2024 (see its blog, Fixing Gradient "
        "Accumulation).",
        (
            Mistake(lambda losses, tokens: fmean(losses),
                "that is the mean of the means. A part with few tokens then counts as much as one with many."),
            Mistake(lambda losses, tokens: sum(losses),
                "that is the sum of the means."),
            Mistake(lambda losses, tokens: sum(loss * n for loss, n in zip(losses, tokens, strict=True)),
                "that is the sum over all tokens; a mean is asked for."),
            Mistake(lambda losses, tokens: sum(loss * n for loss, n in zip(losses, tokens, strict=True)) / len(losses),
                "you divided by the number of parts; divide by the number of tokens."),
            Mistake(lambda losses, tokens: sum(loss / n for loss, n in zip(losses, tokens, strict=True)),
                "more tokens, more weight: multiply by them, do not divide."),
        ),
        inputs=_parts,
    ),
)
# fmt: on
