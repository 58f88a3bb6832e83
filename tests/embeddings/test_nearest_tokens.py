"""gm/embeddings/nearest_tokens.py: nearest tokens to embedding vectors."""

from __future__ import annotations

import numpy as np
import pytest

from gm.embeddings.nearest_tokens import nearest_tokens
from gm.text import bpe


def test_the_most_similar_tokens_come_first_whatever_their_norms() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((bpe.VOCAB_SIZE, 24)).astype(np.float16)
    cat, red = bpe.encode("cat")[0], bpe.encode("red")[0]
    vectors = np.stack([table[cat] * 30.0, 0.8 * table[red] + 0.2 * table[cat]]).astype(np.float32)
    first, second = nearest_tokens(vectors, table, 3)
    assert first[0] == ("cat", pytest.approx(1.0, abs=1e-5))
    assert second[0][0] == "red"
    table64 = table.astype(np.float64)
    cosines = table64 @ vectors[1] / np.linalg.norm(table64, axis=1) / np.linalg.norm(vectors[1])
    best = np.sort(cosines)[::-1][:3]
    np.testing.assert_allclose([cosine for _, cosine in second], best, rtol=1e-4)


def test_start_and_end_token_are_left_out() -> None:
    table = np.zeros((bpe.VOCAB_SIZE, 2), np.float32)
    table[bpe.END] = table[bpe.START] = [1, 0]
    table[bpe.encode("cat")[0]] = [1, 1]
    ((token, _),) = nearest_tokens(np.array([[1.0, 0.0]], np.float32), table, 1)[0:1][0]
    assert token == "cat"
