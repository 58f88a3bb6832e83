"""Initial embedding vectors: those of an initializer token, or random ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gm.errors import UserError
from gm.runtime import rng
from gm.text.tokenizer import Tokenizer


def token_ids(initializer_token: str, tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of the initializer, a word or a phrase; UserError if it has none."""
    ids = tokenizer.encode(initializer_token)
    if not ids:
        raise UserError(
            f"--initializer_token {initializer_token!r} has no tokens; give a word, or leave it out for random vectors"
        )
    return ids


def from_tokens(table: np.ndarray, ids: list[int], num_vectors: int) -> np.ndarray:
    """Return vectors [num_vectors, width]: those of the token `ids` in `table` [tokens, width], repeated in turn."""
    return table[[ids[k % len(ids)] for k in range(num_vectors)]].astype(np.float32)


def mean_of_names(table: np.ndarray, names: Sequence[Sequence[int]], num_vectors: int) -> np.ndarray:
    """Return vectors [num_vectors, width] whose k-th is the mean over `names`, lists of token ids, of the k-th tokens.

    Names with fewer tokens do not count there, and vectors that no name has a token for repeat the first ones in turn.
    Cross Initialization starts faces from the names of celebrities (Pang et al., 2024).
    """
    columns = [[name[k] for name in names if len(name) > k] for k in range(num_vectors)]
    means = [table[column].astype(np.float32).mean(0) for column in columns if column]
    return np.stack([means[k % len(means)] for k in range(num_vectors)])


def random_vectors(table: np.ndarray, num_vectors: int, seed: int, encoder: int, concept: int = 0) -> np.ndarray:
    """Return random vectors [num_vectors, width] with the mean and deviation of each column of `table` [tokens, width].

    `encoder` and `concept` are indices: each concept has vectors of its own in each text encoder.
    """
    table = table.astype(np.float32, copy=False)  # NumPy has no deviation of bfloat16
    stream = (encoder, concept) if concept else (encoder,)
    noise = rng.normal((num_vectors, table.shape[1]), seed, "initial rows", *stream)
    return (table.mean(0, dtype=np.float64) + noise * table.std(0, dtype=np.float64)).astype(np.float32)
