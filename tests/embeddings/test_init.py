"""gm/embeddings/init.py: initial vectors."""

from __future__ import annotations

import numpy as np
import pytest

from gm.embeddings import init
from gm.errors import UserError
from gm.text.tokenizer import Tokenizer


def test_an_initializer_without_tokens_is_refused() -> None:
    for empty in ("", "  ", "\u200b "):
        if Tokenizer().encode(empty):
            continue
        with pytest.raises(UserError, match="has no tokens; give a word, or leave it out for random vectors"):
            init.token_ids(empty, Tokenizer())


def test_random_vectors_follow_the_mean_and_deviation_of_each_column() -> None:
    table = np.random.default_rng(0).standard_normal((500, 6)) * [1, 2, 3, 4, 5, 6] + [9, 0, 0, 0, 0, -9]
    vectors = init.random_vectors(table.astype(np.float32), 4000, 1, 1)
    np.testing.assert_allclose(vectors.mean(0), table.mean(0), atol=0.4)
    np.testing.assert_allclose(vectors.std(0), table.std(0), rtol=0.06)
    assert not np.allclose(vectors, init.random_vectors(table, 4000, 2, 1))
    assert not np.allclose(vectors, init.random_vectors(table, 4000, 1, 2))
