"""The diffusion loss and its gradient in the learned rows, through both encoders and the UNet, against PyTorch's.

Everything that a training step computes, in one Cell, so that graph mode compiles it once a model.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from gm.diffusion import denoiser, schedule
from gm.runtime import backend
from tests.reference import inputs
from tests.reference.inputs import relative_error


class Loss(nn.Cell):
    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.conditioner, self.unet = model.conditioner, model.unet

    def construct(self, clip_l, clip_g, x, noise, timestep, ids_1, ids_2, pool_position, sizes):
        context, vector = self.conditioner((ids_1, ids_2), (clip_l, clip_g), pool_position, sizes)
        epsilon = self.unet(x, timestep, context, vector)
        return denoiser.loss(epsilon, noise), epsilon, context, vector


class Differentiated(nn.Cell):
    """Returns ((loss, ε, context, vector), (gradient 1, gradient 2))."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.value_and_grad = ms.value_and_grad(Loss(model), grad_position=(0, 1), weights=None, has_aux=True)

    def construct(self, *arguments):
        return self.value_and_grad(*arguments)


def arguments(case, batch):
    """Return the arguments of `Loss`: the noisy latents by our schedule and denoiser."""
    sigma = schedule.training_sigmas(case.config.schedule)[batch.timestep].reshape(-1, 1, 1, 1)
    drawn = batch.mean + np.exp(0.5 * batch.log_variance) * batch.posterior_noise
    latents = drawn * case.config.vae.scale_factor
    x = denoiser.scale_model_input(denoiser.add_noise(latents, batch.noise, sigma), sigma)
    p = batch.prompts
    times = batch.timestep.astype(np.float32)
    arrays = (p.clip_l, p.clip_g, x.astype(np.float32), batch.noise, times, p.ids_1, p.ids_2, p.pool_position, p.sizes)
    return [Tensor(values) for values in arrays]


@pytest.fixture(scope="module", params=[False, True], ids=["pynative", "graph"])
def differentiated(case, request):
    return backend.compile_cell(Differentiated(case.model), request.param)


def test_loss_and_gradient(case, differentiated):
    from tests.reference.loops import loss_and_gradient

    for seed in (70, 71):  # the second time, a graph is run without being compiled
        batch = inputs.batch(case.config, seed, count=2)
        (loss, *_), (gradient_1, gradient_2) = differentiated(*arguments(case, batch))
        expected, expected_1, expected_2 = loss_and_gradient(case.reference, batch)
        assert float(loss.asnumpy()) == pytest.approx(expected, rel=1e-5)  # measured: 4e-7
        assert relative_error(gradient_1.asnumpy(), expected_1) < 1e-4  # measured: 3e-5
        assert relative_error(gradient_2.asnumpy(), expected_2) < 1e-4


def test_forward_pass_inside(case, differentiated, no_grad):
    batch = inputs.batch(case.config, 72, count=2)
    given = arguments(case, batch)
    (_, epsilon, context, vector), _ = differentiated(*given)
    p = batch.prompts
    expected, pooled = case.reference.condition(p.ids_1, p.ids_2, p.pool_position, p.clip_l, p.clip_g)
    assert relative_error(context.asnumpy(), expected.numpy()) < 2e-5
    assert relative_error(vector.asnumpy(), case.reference.class_vector(pooled, p.sizes).numpy()) < 5e-5
    x, times = given[2].asnumpy(), given[4].asnumpy()
    right = case.reference.epsilon(x, times, expected, pooled, p.sizes).numpy()
    assert relative_error(epsilon.asnumpy(), right) < 2e-5


def test_rows_that_no_prompt_uses_have_no_gradient(smallest):
    batch = inputs.batch(smallest.config, 73, count=1, learned=1)
    given = arguments(smallest, batch)
    for place in (0, 1):
        rows = given[place].asnumpy()
        given[place] = Tensor(np.concatenate((rows, rows)))
    _, gradients = Differentiated(smallest.model)(*given)
    for gradient in gradients:
        assert np.abs(gradient.asnumpy()[0]).max() > 0.0
        assert np.abs(gradient.asnumpy()[1]).max() == 0.0
