"""gm/models/layers.py and token_embedding.py, where tests of whole networks would not show an error."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.models.layers import GroupNorm, LayerNorm, SinusoidalEmbedding
from gm.models.token_embedding import TokenEmbedding
from tests.reference.inputs import normal, relative_error


@pytest.mark.parametrize("width", [10, 256, 320])
def test_sinusoidal_embedding_is_exact_for_large_values(width):
    """An angle in the thousands multiplies the error of its frequency, so frequencies must be exact to the last bit."""
    values = np.array([0.0, 1.0, 999.0, 1024.0, 4096.0])
    angles = values[:, None] * np.exp(-math.log(10000.0) * np.arange(width // 2) / (width // 2))
    expected = np.concatenate((np.cos(angles), np.sin(angles)), axis=-1)
    embeddings = SinusoidalEmbedding(width)(Tensor(values.astype(np.float32))).asnumpy()
    for embedding, expected_embedding in zip(embeddings, expected, strict=True):
        assert relative_error(embedding, expected_embedding) < 5e-5


def test_half_precision_is_normalised_in_float32():
    """Weights and squares of float16 inputs are not rounded to float16, whose largest number is 65,504."""
    x = 500.0 * normal(1, 2, 6, 4, 4)
    layers = [(GroupNorm(3, 6, 1e-5), x), (LayerNorm(6), x.transpose(1, 0, 2, 3).reshape(6, 2, 16))]
    for layer, values in layers:
        layer.gamma.set_data(Tensor(1.0 + 0.1 * normal(2, 6)))
        layer.beta.set_data(Tensor(normal(3, 6)))
        half = Tensor(values).astype(ms.float16)
        single = layer(half.astype(ms.float32))
        assert layer(half).dtype == ms.float16
        np.testing.assert_array_equal(layer(half).asnumpy(), single.astype(ms.float16).asnumpy())


@pytest.fixture
def embedding():
    layer = TokenEmbedding(5, 3, ms.float32)
    layer.embedding_table.set_data(Tensor(normal(2, 5, 3)))
    return layer


def test_ids_beyond_the_vocabulary_select_embedding_vectors(embedding):
    vectors = normal(3, 2, 3)
    ids = np.array([[0, 4, 5, 6], [6, 2, 6, 1]], np.int32)
    expected = np.concatenate((embedding.embedding_table.asnumpy(), vectors))[ids]
    np.testing.assert_array_equal(embedding(Tensor(ids), Tensor(vectors)).asnumpy(), expected)


def test_gradient_of_an_embedding_vector_is_summed_over_its_occurrences(embedding):
    vectors, weights = Tensor(normal(3, 2, 3)), normal(4, 2, 4, 3)
    ids = np.array([[0, 4, 5, 6], [6, 2, 6, 1]], np.int32)
    gradient = ms.grad(lambda v: (embedding(Tensor(ids), v) * Tensor(weights)).sum())(vectors).asnumpy()
    expected = np.stack([weights[ids == 5].sum(axis=0), weights[ids == 6].sum(axis=0)])
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
