"""Conditioner and UNet of a refiner against transformers and diffusers; `test_unet.py` has more of the UNet."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor, nn

from gm.runtime import backend
from tests.reference import inputs
from tests.reference.inputs import normal, relative_error

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures("no_grad")]


class Refiner(nn.Cell):
    """Token ids, sizes and score, x and timesteps → ε, as one graph."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.conditioner, self.unet = model.conditioner, model.unet

    def construct(self, ids_2, pool_position, clip_g, sizes, x, timesteps):
        context, y = self.conditioner((ids_2,), (clip_g,), pool_position, sizes)
        return self.unet(x, timesteps, context, y)


def expected(case, p):
    """Return context, class embedding and pooled output of the prompts `p` by transformers and diffusers."""
    context, pooled = case.reference.encode_text_2(p.ids_2, p.clip_g, p.pool_position)
    return context, case.reference.class_embedding(pooled, p.sizes), pooled


@pytest.mark.parametrize("count", [1, 3])
def test_context_and_class_embedding(refiner, count):
    p = inputs.prompts(refiner.config, 40 + count, count)
    position = Tensor(p.pool_position)
    context, y = refiner.model.conditioner((Tensor(p.ids_2),), (Tensor(p.clip_g),), position, Tensor(p.sizes))
    hidden, expected_y, _ = (part.numpy() for part in expected(refiner, p))
    assert relative_error(context.asnumpy(), hidden) < 2e-5
    width = refiner.config.text_encoder_2.width
    assert y.shape == (count, refiner.config.unet.adm_in_channels)
    assert relative_error(y.asnumpy()[:, :width], expected_y[:, :width]) < 2e-5
    assert relative_error(y.asnumpy()[:, width:], expected_y[:, width:]) < 5e-5  # float32's for sizes of 2000
    # The score is small, so its embedding is more exact.
    assert relative_error(y.asnumpy()[:, -10:], expected_y[:, -10:]) < 1e-6


def test_context_depends_on_the_embedding_vectors(refiner):
    p = inputs.prompts(refiner.config, 44)
    contexts = []
    for vectors in (p.clip_g, 2 * p.clip_g):
        position = Tensor(p.pool_position)
        context, _ = refiner.model.conditioner((Tensor(p.ids_2),), (Tensor(vectors),), position, Tensor(p.sizes))
        contexts.append(context.asnumpy())
    assert relative_error(contexts[1], contexts[0]) > 1e-2


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.graph)])
def test_epsilon(refiner, graph):
    p = inputs.prompts(refiner.config, 45, 2)
    x, timesteps = normal(46, 2, refiner.config.unet.in_channels, 8, 12), np.array([180, 3], np.float32)
    network = backend.compile_cell(Refiner(refiner.model), graph)
    ours = network(*map(Tensor, (p.ids_2, p.pool_position, p.clip_g, p.sizes, x, timesteps))).asnumpy()
    context, _, pooled = expected(refiner, p)
    assert relative_error(ours, refiner.reference.epsilon(x, timesteps, context, pooled, p.sizes).numpy()) < 2e-5


def test_the_middle_block_has_its_own_depth(refiner):
    unet = refiner.model.unet
    assert len(unet.middle_block[1].transformer_blocks) == 3
    assert [len(block) for block in unet.input_blocks] == [1, 1, 1, 2, 1, 1]  # attention on the second level only
