"""Nearest tokens of the vocabulary to embedding vectors."""

from __future__ import annotations

import numpy as np

from gm.text import bpe


def nearest_tokens(vectors: np.ndarray, table: np.ndarray, count: int) -> list[list[tuple[str, float]]]:
    """Return the `count` tokens nearest to each of `vectors` [n, width] with their cosine similarity, nearest first.

    `table` [vocabulary, width] holds the token embeddings of a text encoder. Start and end token are left out.
    """
    tokens = table[: bpe.START].astype(np.float32, copy=False)
    norms = np.linalg.norm(tokens, axis=1) + 1e-12
    directions = vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-12)
    cosines = tokens @ directions.T / norms[:, None]
    nearest = np.argsort(-cosines, axis=0, kind="stable")[:count]
    return [
        [(bpe.decode_token(int(token)), float(cosines[token, k])) for token in nearest[:, k]]
        for k in range(len(vectors))
    ]
