"""The exercises of notebook 08, with their solutions and with hints for typical mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

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
