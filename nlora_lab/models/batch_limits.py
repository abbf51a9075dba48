"""How much goes through a model at once while it is measured: as much as is fast, within a bound on memory."""

from __future__ import annotations

from typing import Any

FORWARD_ROWS = 50  # rows of a forward pass
ANSWER_ROWS = 100  # prompts that are answered together
ANSWER_TOKENS = 16384  # tokens of those prompts, together with the tokens to be generated
LOGITS_BYTES = 2**28  # bound for the float32 logits of a forward pass; at times three copies exist
KV_CACHE_BYTES = 2**32  # bound for the keys and values of the prompts answered together


def rows_per_forward(longest: int, vocabulary: int) -> int:
    """Compute how many rows a language model may read in one forward pass.

    Args:
        longest: the length of the longest row, in tokens.
        vocabulary: the number of tokens in the vocabulary.

    Returns:
        The number of rows, from 1 to ``FORWARD_ROWS``.
    """
    return max(1, min(FORWARD_ROWS, LOGITS_BYTES // (4 * max(1, longest * vocabulary))))


def kv_bytes_per_token(config: Any, width: int) -> int:
    """Compute the size of the keys and values that a transformer keeps for each token while it generates.

    Args:
        config: a transformers config.
        width: the size of one number, in bytes.

    Returns:
        The size in bytes.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = getattr(text, "num_attention_heads", 1)
    head_width = getattr(text, "head_dim", None) or getattr(text, "hidden_size", 0) // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    return 2 * width * getattr(text, "num_hidden_layers", 0) * kv_heads * head_width


def tokens_per_batch(bytes_per_token: int) -> int:
    """Compute how many tokens may be processed at once while prompts are answered.

    Args:
        bytes_per_token: the size of the keys and values of one token, in bytes.

    Returns:
        The number of tokens, with the tokens to be generated, from 1 to ``ANSWER_TOKENS``.
    """
    return max(1, min(ANSWER_TOKENS, KV_CACHE_BYTES // max(1, bytes_per_token)))
