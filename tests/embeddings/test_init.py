"""gm/embeddings/init.py: initial vectors."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

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


def test_vectors_from_a_bfloat16_table_are_those_of_the_same_values_in_float32() -> None:
    # As the table of a model with --precision bfloat16 comes from MindSpore.
    table = Tensor(np.random.default_rng(0).standard_normal((50, 6)), ms.bfloat16).asnumpy()
    assert table.dtype.name == "bfloat16"
    same = table.astype(np.float32)
    for vectors, expected in (
        (init.random_vectors(table, 3, 1, 1), init.random_vectors(same, 3, 1, 1)),
        (init.from_tokens(table, [4, 2], 3), same[[4, 2, 4]]),
    ):
        assert vectors.dtype == np.float32
        assert np.array_equal(vectors, expected)
