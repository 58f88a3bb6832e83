"""Stable Diffusion 1 and 2 against diffusers and transformers: hidden states, UNet, VAE, gradients, names."""

from __future__ import annotations

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from gm.diffusion import denoiser, schedule
from gm.models import stable_diffusion
from gm.runtime import backend
from tests.reference import inputs
from tests.reference.case import filled
from tests.reference.inputs import Prompts, normal, relative_error

pytestmark = pytest.mark.reference

POSITION, SIZES = Tensor([0], ms.int32), Tensor(np.zeros((1, 6), np.float32))  # which nothing reads


def own_ids(case, prompts: Prompts) -> np.ndarray:
    """Return the ids as the model's encoder pads them."""
    return prompts.ids_2 if "clip_h" in case.config.text_encoders else prompts.ids_1


def expected_context(case, p: Prompts):
    return case.reference.condition(p.ids_1, p.ids_2, p.pool_position, p.clip_l, p.clip_g)[0]


@pytest.mark.parametrize(("count", "num_vectors"), [(1, 1), (3, 2), (2, 0)])
def test_hidden_states(sd_case, count, num_vectors, no_grad):
    p = inputs.prompts(sd_case.config, 110 + count, count, num_vectors)
    context, y = sd_case.model.conditioner((Tensor(own_ids(sd_case, p)),), (Tensor(p.clip_l),), POSITION, SIZES)
    assert y is None
    assert relative_error(context.asnumpy(), expected_context(sd_case, p).numpy()) < 2e-5  # measured: 5e-7


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip_takes_an_earlier_layer_and_the_final_norm(sd_case, clip_skip, no_grad):
    """The rule of kohya's `--clip_skip` and of AUTOMATIC1111, whose numbers are these, too."""
    encoder = dataclasses.replace(sd_case.config.text_encoder_1, clip_skip=clip_skip)
    model = filled(dataclasses.replace(sd_case.config, text_encoder_1=encoder), sd_case.weights, ms.float32)
    p = inputs.prompts(sd_case.config, 117, count=2)
    context, _ = model.conditioner((Tensor(own_ids(sd_case, p)),), (Tensor(p.clip_l),), POSITION, SIZES)
    states = sd_case.reference._run("text_encoder_1", "embeddings.", own_ids(sd_case, p), p.clip_l).hidden_states
    expected = sd_case.reference.text_encoder_1.final_layer_norm(states[-clip_skip])
    assert relative_error(context.asnumpy(), expected.detach().numpy()) < 2e-5


def test_chunks_of_a_text_are_encoded_alone(sd_case, no_grad):
    p = inputs.prompts(sd_case.config, 120, count=4)
    ids = own_ids(sd_case, p)
    chunks = Tensor(ids.reshape((2, 2, -1)))
    context, _ = sd_case.model.conditioner((chunks,), (Tensor(p.clip_l),), Tensor([0, 0], ms.int32), SIZES)
    expected = expected_context(sd_case, p).numpy()
    assert relative_error(context.asnumpy(), expected.reshape(context.shape)) < 2e-5


@pytest.mark.parametrize(
    ("height", "width", "timesteps"), [(8, 8, [0]), (8, 24, [999, 1]), (16, 16, [21.5]), (9, 11, [500, 0])]
)
def test_unet(sd_case, height, width, timesteps, no_grad):
    config = sd_case.config
    x = normal(130, len(timesteps), config.unet.in_channels, height, width)
    context = normal(131, len(timesteps), config.context_length, config.unet.context_dim)
    timesteps = np.array(timesteps, np.float32)
    expected = sd_case.reference.epsilon(x, timesteps, context, None, None).numpy()
    ours = sd_case.model.unet(Tensor(x), Tensor(timesteps), Tensor(context)).asnumpy()
    assert relative_error(ours, expected) < 2e-5  # measured: 3e-6


def test_vae(sd_case, no_grad):
    factor, channels = sd_case.config.vae.downsample_factor, sd_case.config.vae.latent_channels
    images, latents = normal(140, 1, 3, 4 * factor, 2 * factor), normal(141, 1, channels, 4, 3)
    vae = sd_case.model.first_stage_model
    for ours, expected in zip(vae.encode(Tensor(images)), sd_case.reference.encode_image(images), strict=True):
        assert relative_error(ours.asnumpy(), expected.numpy()) < 2e-5
    decoded = sd_case.reference.decode_latents(latents).numpy()
    assert relative_error(vae.decode(Tensor(latents)).asnumpy(), decoded) < 2e-5


def test_half_precision(sd_case, no_grad):
    half = filled(sd_case.config, sd_case.weights, ms.float16)
    p = inputs.prompts(sd_case.config, 150, count=1)
    arguments = (Tensor(own_ids(sd_case, p)),), (Tensor(p.clip_l),), POSITION, SIZES
    context = half.conditioner(*arguments)[0]
    assert context.dtype == ms.float16
    x, timesteps = Tensor(normal(151, 1, 4, 8, 8)), Tensor([400.0])
    single = sd_case.model.unet(x, timesteps, sd_case.model.conditioner(*arguments)[0]).asnumpy()
    assert 1e-5 < relative_error(half.unet(x, timesteps, context).asnumpy(), single) < 1e-2


class Loss(nn.Cell):
    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.conditioner, self.unet = model.conditioner, model.unet

    def construct(self, vectors, x, noise, timesteps, ids, pool_position, sizes):
        context, y = self.conditioner((ids,), (vectors,), pool_position, sizes)
        return denoiser.loss(self.unet(x, timesteps, context, y), noise)


class LossAndGradient(nn.Cell):
    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.value_and_grad = ms.value_and_grad(Loss(model), grad_position=0, weights=None)

    def construct(self, *arguments):
        return self.value_and_grad(*arguments)


def check_gradient(case, graph, checkpointed=False):
    from tests.reference.loops import loss_and_gradient

    model = case.model
    if checkpointed:
        model = filled(case.config, case.weights, ms.float32)
        model.enable_gradient_checkpointing()
    batch = inputs.batch(case.config, 160, count=2)
    sigma = schedule.training_sigmas(case.config.schedule)[batch.timestep].reshape(-1, 1, 1, 1)
    latents = (batch.mean + np.exp(0.5 * batch.log_variance) * batch.posterior_noise) * case.config.vae.scale_factor
    x = denoiser.scale_model_input(denoiser.add_noise(latents, batch.noise, sigma), sigma).astype(np.float32)
    p = batch.prompts
    values = (p.clip_l, x, batch.noise, batch.timestep.astype(np.float32), own_ids(case, p), p.pool_position, p.sizes)
    loss, gradient = backend.compile_cell(LossAndGradient(model), graph)(*map(Tensor, values))
    expected, expected_gradient, unused = loss_and_gradient(case.reference, batch)
    assert float(loss.asnumpy()) == pytest.approx(expected, rel=1e-5)
    assert relative_error(gradient.asnumpy(), expected_gradient) < 1e-4
    assert not unused.any()


def test_gradient_of_the_embedding_vectors(sd_case):
    check_gradient(sd_case, graph=False)


@pytest.mark.graph
def test_gradient_in_graph_mode(cases):
    check_gradient(cases("small-sd1"), graph=True)


@pytest.mark.graph
def test_gradient_with_checkpointing(cases):
    check_gradient(cases("small-sd1"), graph=True, checkpointed=True)


def test_diffusers_loads_every_published_value(sd_case):
    """diffusers' loader finds every tensor (asserted on loading) and leaves none."""
    reference = sd_case.reference
    networks = (reference.unet, reference.vae, reference.text_encoder_1)
    loaded = sum(p.numel() for network in networks for p in network.parameters())
    assert loaded == sum(tensor.size for tensor in sd_case.weights.values())


def test_every_parameter_is_frozen_and_named_once(sd_case):
    parameters = list(sd_case.model.get_parameters())
    assert len({p.name for p in parameters}) == len(parameters) == len(sd_case.weights)
    assert [p.name for p in parameters if p.requires_grad] == []


def test_token_tables_have_the_name_of_the_only_encoder(sd_case):
    ((name, encoder),) = sd_case.config.text_encoders.items()
    assert name == ("clip_h" if sd_case.config.family == "sd2" else "clip_l")
    ((key, table),) = sd_case.model.token_tables().items()
    assert (key, table.shape) == (name, (encoder.vocab_size, encoder.width))


def test_fingerprint_changes_with_the_text_encoder(cases):
    case = cases("small-sd1")
    model = filled(case.config, case.weights, ms.float32)
    assert stable_diffusion.fingerprint(model) == stable_diffusion.fingerprint(case.model)
    norm = model.conditioner.embedders[0].transformer.text_model.final_layer_norm.gamma
    norm.set_data(norm * 1.01)
    assert stable_diffusion.fingerprint(model) != stable_diffusion.fingerprint(case.model)
