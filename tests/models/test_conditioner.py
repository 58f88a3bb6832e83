"""gm/models/conditioner.py against transformers' text encoders and diffusers' embedding of sizes."""

from __future__ import annotations

import pytest
from mindspore import Tensor

from tests.reference import inputs
from tests.reference.inputs import relative_error

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures("no_grad")]


@pytest.mark.parametrize("count", [1, 3])
def test_context_and_class_embedding(case, count):
    p = inputs.prompts(case.config, 40 + count, count)
    token_ids = Tensor(p.ids_1), Tensor(p.ids_2)
    embedding_vectors = Tensor(p.clip_l), Tensor(p.clip_g)
    context, y = case.model.conditioner(token_ids, embedding_vectors, Tensor(p.pool_position), Tensor(p.sizes))
    expected, pooled = case.reference.condition(p.ids_1, p.ids_2, p.pool_position, p.clip_l, p.clip_g)
    assert relative_error(context.asnumpy(), expected.numpy()) < 2e-5  # measured: 5e-7
    expected_y = case.reference.class_embedding(pooled, p.sizes).numpy()
    assert relative_error(y.asnumpy(), expected_y) < 5e-5  # measured: 1e-5, the error of float32 for sizes of 2000
    width = case.config.text_encoder_2.width
    assert relative_error(y.asnumpy()[:, width:], expected_y[:, width:]) < 5e-5
