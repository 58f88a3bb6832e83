"""gm/models/unet.py against diffusers."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from tests.reference import inputs
from tests.reference.case import filled
from tests.reference.inputs import normal, relative_error

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures("no_grad")]


def random_inputs(case, height, width, count, seed):
    """Return x, context, pooled and sizes of `count` images whose latents are `height` by `width`."""
    config = case.config
    x = normal(seed, count, config.unet.in_channels, height, width)
    context = normal(seed + 1, count, config.text_encoder_1.context_length, config.unet.context_dim)
    pooled = normal(seed + 2, count, config.text_encoder_2.width)
    return x, context, pooled, inputs.prompts(config, seed, count).sizes


@pytest.mark.parametrize(
    ("height", "width", "timesteps"),
    [(8, 8, [0]), (8, 24, [999, 1]), (24, 16, [500, 0, 999]), (16, 16, [21.5])],
)
def test_epsilon(any_case, height, width, timesteps):
    x, context, pooled, sizes = random_inputs(any_case, height, width, len(timesteps), 50)
    timesteps = np.array(timesteps, np.float32)
    expected = any_case.reference.epsilon(x, timesteps, context, pooled, sizes).numpy()
    y = any_case.reference.class_embedding(pooled, sizes).numpy()
    ours = any_case.model.unet(Tensor(x), Tensor(timesteps), Tensor(context), Tensor(y)).asnumpy()
    assert relative_error(ours, expected) < 2e-5  # measured: 3e-6


@pytest.mark.parametrize(("height", "width"), [(8, 12), (9, 11), (17, 10)])
def test_odd_heights_and_widths(any_case, height, width):
    x, context, pooled, sizes = random_inputs(any_case, height, width, 2, 51)
    timesteps = np.array([0, 999], np.float32)
    expected = any_case.reference.epsilon(x, timesteps, context, pooled, sizes).numpy()
    y = any_case.reference.class_embedding(pooled, sizes).numpy()
    ours = any_case.model.unet(Tensor(x), Tensor(timesteps), Tensor(context), Tensor(y)).asnumpy()
    assert relative_error(ours, expected) < 2e-5


def test_context_projected_once_gives_the_same_epsilon(case):
    x, context, pooled, sizes = random_inputs(case, 8, 8, 2, 53)
    unet = case.model.unet
    blocks = case.config.unet.num_res_blocks
    num_attentions = (2 * blocks + 1) * sum(case.config.unet.transformer_depth) + case.config.unet.middle_depth
    context_kv = unet.project_context(Tensor(context))
    assert len(context_kv) == 2 * num_attentions
    timesteps, y = Tensor(np.array([7, 700], np.float32)), Tensor(case.reference.class_embedding(pooled, sizes).numpy())
    epsilon = unet.forward(Tensor(x), timesteps, context_kv, y).asnumpy()
    np.testing.assert_array_equal(epsilon, unet(Tensor(x), timesteps, Tensor(context), y).asnumpy())


def test_half_precision(case):
    """Ascend's default for the frozen weights; ε is float32."""
    half = filled(case.config, case.weights, ms.float16).unet
    x, context, pooled, sizes = random_inputs(case, 16, 8, 1, 52)
    timesteps = np.array([400], np.float32)
    y = case.reference.class_embedding(pooled, sizes).numpy()
    arguments = [Tensor(values) for values in (x, timesteps, context, y)]
    ours, single = half(*arguments), case.model.unet(*arguments)
    assert ours.dtype == ms.float32
    assert 1e-5 < relative_error(ours.asnumpy(), single.asnumpy()) < 1e-2
