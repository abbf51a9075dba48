"""How much of a measurement goes through a model at once: as much as is quick, and no more than memory is good for."""

from __future__ import annotations

from typing import Any

READ_ROWS = 50  # rows of a forward pass
ANSWERED_ROWS = 100  # prompts that are answered together
ANSWERED_TOKENS = 16384  # at a time, those to be generated included
LOGITS = 2**28  # bytes that the float32 logits of a forward pass may take: three such are alive at times
CACHE = 2**32  # bytes that the keys and values of the prompts answered together may take


def read_at_once(longest: int, vocabulary: int) -> int:
    """Rows of up to ``longest`` tokens that a language model may read in one forward pass."""
    return max(1, min(READ_ROWS, LOGITS // (4 * max(1, longest * vocabulary))))


def cached_bytes(config: Any, width: int) -> int:
    """Bytes of keys and values that a transformer of this config keeps a token, in numbers of ``width`` bytes."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = getattr(text, "num_attention_heads", 1)
    each = getattr(text, "head_dim", None) or getattr(text, "hidden_size", 0) // heads
    return (
        2 * width * getattr(text, "num_hidden_layers", 0) * (getattr(text, "num_key_value_heads", None) or heads) * each
    )


def tokens_at_once(cached: int) -> int:
    """Tokens, those to be generated included, that may be in work at a time with ``cached`` bytes kept for each."""
    return max(1, min(ANSWERED_TOKENS, CACHE // max(1, cached)))
