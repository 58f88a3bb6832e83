"""Diffusion loss and its gradient in the embedding vectors, through both text encoders and the UNet, against PyTorch's.

One Cell computes everything that a training step computes, so that graph mode compiles once per model.
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

pytestmark = pytest.mark.reference


class Loss(nn.Cell):
    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.conditioner, self.unet = model.conditioner, model.unet

    def construct(self, clip_l, clip_g, x, noise, timesteps, ids_1, ids_2, pool_position, sizes):
        context, y = self.conditioner((ids_1, ids_2), (clip_l, clip_g), pool_position, sizes)
        epsilon = self.unet(x, timesteps, context, y)
        return denoiser.loss(epsilon, noise), epsilon, context, y


class LossAndGradients(nn.Cell):
    """Returns ((loss, ε, context, y), (gradient in clip_l, gradient in clip_g))."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.value_and_grad = ms.value_and_grad(Loss(model), grad_position=(0, 1), weights=None, has_aux=True)

    def construct(self, *arguments):
        return self.value_and_grad(*arguments)


def arguments(case, batch):
    """Return the arguments of `Loss`, with the noisy latents by our schedule and denoiser."""
    sigma = schedule.training_sigmas(case.config.schedule)[batch.timestep].reshape(-1, 1, 1, 1)
    sampled = batch.mean + np.exp(0.5 * batch.log_variance) * batch.posterior_noise
    latents = sampled * case.config.vae.scale_factor
    x = denoiser.scale_model_input(denoiser.add_noise(latents, batch.noise, sigma), sigma)
    p = batch.prompts
    timesteps = batch.timestep.astype(np.float32)
    arrays = (
        p.clip_l,
        p.clip_g,
        x.astype(np.float32),
        batch.noise,
        timesteps,
        p.ids_1,
        p.ids_2,
        p.pool_position,
        p.sizes,
    )
    return [Tensor(values) for values in arrays]


@pytest.fixture(
    scope="module",
    params=[pytest.param(False, id="pynative"), pytest.param(True, id="graph", marks=pytest.mark.graph)],
)
def loss_and_gradients(case, request):
    return backend.compile_cell(LossAndGradients(case.model), request.param)


def test_loss_and_gradients(case, loss_and_gradients):
    from tests.reference.loops import loss_and_gradient

    for seed in (70, 71):  # the second time, a graph runs without being compiled
        batch = inputs.batch(case.config, seed, count=2)
        (loss, *_), (gradient_l, gradient_g) = loss_and_gradients(*arguments(case, batch))
        expected, expected_l, expected_g = loss_and_gradient(case.reference, batch)
        assert float(loss.asnumpy()) == pytest.approx(expected, rel=1e-5)  # measured: 4e-7
        assert relative_error(gradient_l.asnumpy(), expected_l) < 1e-4  # measured: 3e-5
        assert relative_error(gradient_g.asnumpy(), expected_g) < 1e-4


def test_forward_pass(case, loss_and_gradients, no_grad):
    batch = inputs.batch(case.config, 72, count=2)
    inputs_of_loss = arguments(case, batch)
    (_, epsilon, context, y), _ = loss_and_gradients(*inputs_of_loss)
    p = batch.prompts
    expected, pooled = case.reference.condition(p.ids_1, p.ids_2, p.pool_position, p.clip_l, p.clip_g)
    assert relative_error(context.asnumpy(), expected.numpy()) < 2e-5
    assert relative_error(y.asnumpy(), case.reference.class_embedding(pooled, p.sizes).numpy()) < 5e-5
    x, timesteps = inputs_of_loss[2].asnumpy(), inputs_of_loss[4].asnumpy()
    expected_epsilon = case.reference.epsilon(x, timesteps, expected, pooled, p.sizes).numpy()
    assert relative_error(epsilon.asnumpy(), expected_epsilon) < 2e-5


def test_unused_embedding_vectors_have_zero_gradient(smallest):
    batch = inputs.batch(smallest.config, 73, count=1, num_vectors=1)
    inputs_of_loss = arguments(smallest, batch)
    for position in (0, 1):
        vectors = inputs_of_loss[position].asnumpy()
        inputs_of_loss[position] = Tensor(np.concatenate((vectors, vectors)))
    _, gradients = LossAndGradients(smallest.model)(*inputs_of_loss)
    for gradient in gradients:
        assert np.abs(gradient.asnumpy()[0]).max() > 0.0
        assert np.abs(gradient.asnumpy()[1]).max() == 0.0
