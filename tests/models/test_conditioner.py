"""gm/models/conditioner.py against transformers' encoders and what diffusers' UNet makes of sizes."""

from __future__ import annotations

import pytest
from mindspore import Tensor

from tests.reference import inputs
from tests.reference.inputs import relative_error

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize("count", [1, 3])
def test_context_and_vector(case, count):
    p = inputs.prompts(case.config, 40 + count, count)
    ids, vectors = (Tensor(p.ids_1), Tensor(p.ids_2)), (Tensor(p.clip_l), Tensor(p.clip_g))
    context, vector = case.model.conditioner(ids, vectors, Tensor(p.pool_position), Tensor(p.sizes))
    expected, pooled = case.reference.condition(p.ids_1, p.ids_2, p.pool_position, p.clip_l, p.clip_g)
    assert relative_error(context.asnumpy(), expected.numpy()) < 2e-5  # measured: 5e-7
    sizes = case.reference.class_vector(pooled, p.sizes).numpy()
    assert relative_error(vector.asnumpy(), sizes) < 5e-5  # measured: 1e-5, which is float32's for sizes of 2000
    width = case.config.text_encoder_2.width
    assert relative_error(vector.asnumpy()[:, width:], sizes[:, width:]) < 5e-5
