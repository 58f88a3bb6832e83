"""Words that a row is like."""

from __future__ import annotations

import numpy as np
import pytest

from gm.embeddings.nearest_tokens import nearest_tokens
from gm.text import bpe


def test_the_most_alike_come_first_whatever_their_lengths() -> None:
    random = np.random.default_rng(0)
    table = random.standard_normal((bpe.VOCAB_SIZE, 24)).astype(np.float16)
    cat, red = bpe.encode("cat")[0], bpe.encode("red")[0]
    rows = np.stack([table[cat] * 30.0, 0.8 * table[red] + 0.2 * table[cat]]).astype(np.float32)
    first, second = nearest_tokens(rows, table, 3)
    assert first[0] == ("cat", pytest.approx(1.0, abs=1e-5))
    assert second[0][0] == "red"
    table32 = table.astype(np.float64)
    cosines = table32 @ rows[1] / np.linalg.norm(table32, axis=1) / np.linalg.norm(rows[1])
    best = np.sort(cosines)[::-1][:3]
    np.testing.assert_allclose([cosine for _, cosine in second], best, rtol=1e-4)


def test_marks_are_no_words() -> None:
    table = np.zeros((bpe.VOCAB_SIZE, 2), np.float32)
    table[bpe.END] = table[bpe.START] = [1, 0]
    table[bpe.encode("cat")[0]] = [1, 1]
    ((word, _),) = nearest_tokens(np.array([[1.0, 0.0]], np.float32), table, 1)[0:1][0]
    assert word == "cat"
