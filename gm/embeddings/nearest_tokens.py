"""Which words of an encoder a learned row is like."""

from __future__ import annotations

import numpy as np

from gm.text import bpe


def nearest_tokens(rows: np.ndarray, table: np.ndarray, count: int) -> list[list[tuple[str, float]]]:
    """Return the `count` tokens most like each of `rows` [n, width], with the cosine of the angle between them.

    `table` [vocabulary, width] is an encoder's; the most alike comes first. The marks of start and end do not count.
    """
    words = table[: bpe.START].astype(np.float32, copy=False)
    lengths = np.linalg.norm(words, axis=1) + 1e-12
    cosines = words @ (rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-12)).T / lengths[:, None]
    best = np.argsort(-cosines, axis=0, kind="stable")[:count]
    return [
        [(bpe.decode_token(int(number)), float(cosines[number, row])) for number in best[:, row]]
        for row in range(len(rows))
    ]
