"""What the rows are before anything is learned."""

from __future__ import annotations

import numpy as np

from gm.errors import UserError
from gm.runtime import rng
from gm.text.tokenizer import Tokenizer


def token_ids(initializer: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the word or phrase to start from; UserError if it has none."""
    ids = tokenizer.encode(initializer)
    if not ids:
        raise UserError(f"--initializer_token {initializer!r} holds no word; give one, or leave it out for random rows")
    return ids


def from_words(table: np.ndarray, ids: list[int], num_vectors: int) -> np.ndarray:
    """Return rows [num_vectors, width]: the phrase's own rows of `table`, over and over."""
    return table[[ids[k % len(ids)] for k in range(num_vectors)]].astype(np.float32)


def random(table: np.ndarray, num_vectors: int, seed: int, encoder: int, word: int = 0) -> np.ndarray:
    """Return rows [num_vectors, width] drawn with the mean and spread of each column of `table` [rows, width].

    `word` is the number of the word among several: each has rows of its own.
    """
    which = (encoder, word) if word else (encoder,)
    noise = rng.normal((num_vectors, table.shape[1]), seed, "initial rows", *which)
    return (table.mean(0, dtype=np.float64) + noise * table.std(0, dtype=np.float64)).astype(np.float32)
