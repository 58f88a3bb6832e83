"""The refiner's conditioner and UNet against transformers and diffusers; `test_unet.py` has more of the UNet."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor, nn

from gm.runtime import backend
from tests.reference import inputs
from tests.reference.inputs import normal, relative_error

pytestmark = pytest.mark.usefixtures("no_grad")


class Refined(nn.Cell):
    """Text, sizes and score, x and timestep → ε, as one graph."""

    def __init__(self, model):
        super().__init__()
        self.conditioner, self.unet = model.conditioner, model.unet

    def construct(self, ids_2, pool_position, clip_g, sizes, x, timestep):
        context, vector = self.conditioner((ids_2,), (clip_g,), pool_position, sizes)
        return self.unet(x, timestep, context, vector)


def expected(case, p):
    """Return context and vector of the prompts `p`, as transformers and diffusers make them."""
    context, pooled = case.reference.encode_text_2(p.ids_2, p.clip_g, p.pool_position)
    return context, case.reference.class_vector(pooled, p.sizes), pooled


@pytest.mark.parametrize("count", [1, 3])
def test_context_and_vector(refiner, count):
    p = inputs.prompts(refiner.config, 40 + count, count)
    ids, vectors = (Tensor(p.ids_2),), (Tensor(p.clip_g),)
    context, vector = refiner.model.conditioner(ids, vectors, Tensor(p.pool_position), Tensor(p.sizes))
    hidden, told, _ = (part.numpy() for part in expected(refiner, p))
    assert relative_error(context.asnumpy(), hidden) < 2e-5
    width = refiner.config.text_encoder_2.width
    assert vector.shape == (count, refiner.config.unet.adm_in_channels)
    assert relative_error(vector.asnumpy()[:, :width], told[:, :width]) < 2e-5
    assert relative_error(vector.asnumpy()[:, width:], told[:, width:]) < 5e-5  # float32's for sizes of 2000
    # The score, which is small, has no such excuse.
    assert relative_error(vector.asnumpy()[:, -10:], told[:, -10:]) < 1e-6


def test_the_learned_rows_are_heard(refiner):
    p = inputs.prompts(refiner.config, 44)
    ours = [
        refiner.model.conditioner((Tensor(p.ids_2),), (Tensor(rows),), Tensor(p.pool_position), Tensor(p.sizes))[
            0
        ].asnumpy()
        for rows in (p.clip_g, 2 * p.clip_g)
    ]
    assert relative_error(ours[1], ours[0]) > 1e-2


@pytest.mark.parametrize("graph", [False, True])
def test_epsilon_of_a_prompt(refiner, graph):
    p = inputs.prompts(refiner.config, 45, 2)
    x, times = normal(46, 2, refiner.config.unet.in_channels, 8, 12), np.array([180, 3], np.float32)
    refined = backend.compile_cell(Refined(refiner.model), graph)
    ours = refined(*map(Tensor, (p.ids_2, p.pool_position, p.clip_g, p.sizes, x, times))).asnumpy()
    context, _, pooled = expected(refiner, p)
    assert relative_error(ours, refiner.reference.epsilon(x, times, context, pooled, p.sizes).numpy()) < 2e-5


def test_the_middle_has_a_depth_of_its_own(refiner):
    unet = refiner.model.unet
    assert len(unet.middle_block[1].transformer_blocks) == 3
    assert [len(block) for block in unet.input_blocks] == [1, 1, 1, 2, 1, 1]  # attention on the second level only
