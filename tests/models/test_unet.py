"""gm/models/unet.py against diffusers."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from tests.reference import inputs
from tests.reference.case import filled
from tests.reference.inputs import normal, relative_error

pytestmark = pytest.mark.usefixtures("no_grad")


def draw(case, height, width, count, seed):
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
    x, context, pooled, sizes = draw(any_case, height, width, len(timesteps), 50)
    times = np.array(timesteps, np.float32)
    expected = any_case.reference.epsilon(x, times, context, pooled, sizes).numpy()
    vector = any_case.reference.class_vector(pooled, sizes).numpy()
    ours = any_case.model.unet(Tensor(x), Tensor(times), Tensor(context), Tensor(vector)).asnumpy()
    assert relative_error(ours, expected) < 2e-5  # measured: 3e-6


@pytest.mark.parametrize(("height", "width"), [(8, 12), (9, 11), (17, 10)])
def test_sizes_that_do_not_halve_evenly(any_case, height, width):
    x, context, pooled, sizes = draw(any_case, height, width, 2, 51)
    times = np.array([0, 999], np.float32)
    expected = any_case.reference.epsilon(x, times, context, pooled, sizes).numpy()
    vector = any_case.reference.class_vector(pooled, sizes).numpy()
    ours = any_case.model.unet(Tensor(x), Tensor(times), Tensor(context), Tensor(vector)).asnumpy()
    assert relative_error(ours, expected) < 2e-5


def test_half_precision(case):
    """Ascend's default for the frozen weights; ε comes back in float32."""
    half = filled(case.config, case.weights, ms.float16).unet
    x, context, pooled, sizes = draw(case, 16, 8, 1, 52)
    times = np.array([400], np.float32)
    vector = case.reference.class_vector(pooled, sizes).numpy()
    arguments = [Tensor(values) for values in (x, times, context, vector)]
    ours, single = half(*arguments), case.model.unet(*arguments)
    assert ours.dtype == ms.float32
    assert 1e-5 < relative_error(ours.asnumpy(), single.asnumpy()) < 1e-2
