"""gm/sampling/pipeline.py beside guided sampling loops of diffusers' networks and scheduler."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from gm.config import SamplingConfig
from gm.diffusion import samplers, schedule
from gm.embeddings.embedding import Embedding, combine
from gm.runtime.backend import Backend
from gm.sampling import resolution
from gm.sampling.pipeline import Pipeline
from gm.text.tokenizer import END, pool_positions
from tests.reference.inputs import Prompts, normal, relative_error
from tests.sampling.generation import PYNATIVE, image_request

pytestmark = pytest.mark.reference

TEXTS = ("a <cat> in the snow", "portrait of <cat>, oil on canvas")


@pytest.fixture(scope="module")
def embeddings(smallest):
    encoders = smallest.config.text_encoders
    vectors = {name: 0.02 * normal(90, 2, encoder.width) for name, encoder in encoders.items()}
    return combine([Embedding("<cat>", vectors)], smallest.config)


@pytest.fixture(scope="module")
def pynative(smallest) -> Pipeline:
    return Pipeline(smallest.model, PYNATIVE, "end_of_text")


def prompts(texts, embeddings, size_conditioning):
    ids_1, ids_2 = embeddings.tokenizer(texts, padding=END), embeddings.tokenizer(texts, padding=0)
    sizes = np.tile(np.asarray(size_conditioning, np.float32), (len(texts), 1))
    vectors = embeddings.vectors["clip_l"], embeddings.vectors["clip_g"]
    return Prompts(ids_1, ids_2, pool_positions(ids_2, "end_of_text"), *vectors, sizes)


@pytest.mark.parametrize(
    ("negative", "steps", "guidance", "graph"),
    [
        ("", 20, 5.0, False),
        pytest.param("blurry, ugly", 7, 7.5, True, marks=pytest.mark.graph),
        ("", 13, 1.0, False),
    ],
    ids=["empty-negative", "negative-graph", "no-guidance"],
)
def test_latents_and_images(smallest, embeddings, pynative, negative, steps, guidance, graph):
    from tests.reference.loops import torch_euler

    sampling = SamplingConfig(
        negative_prompt=negative,
        sample_step=steps,
        guidance_scale=guidance,
        batch_size=2,
        height=34,  # 17 latents: no multiple of what the UNet halves
        width=24,
        orig_height=700,
        orig_width=500,
        target_height=128,
        target_width=192,
        crop_coords_top=3,
        crop_coords_left=40,
    )
    sizes = resolution.from_options(sampling, smallest.config).size_conditioning
    noise = normal(91, 2, 8, 17, 12)
    pipeline = Pipeline(smallest.model, Backend("CPU", True, ms.float32), "end_of_text") if graph else pynative
    requests = [
        image_request(text, 0, smallest.config, embeddings, sampling, noise=each)
        for text, each in zip(TEXTS, noise, strict=True)
    ]
    *_, last = pipeline.generate(requests, embeddings, sampling)
    expected = torch_euler(
        smallest.reference,
        noise,
        prompts(TEXTS, embeddings, sizes),
        prompts([negative] * 2, embeddings, sizes) if negative else None,
        steps=steps,
        guidance_scale=guidance,
    )[-1]
    assert last.latents is not None
    assert relative_error(last.latents, expected) < 1e-4
    decoded = smallest.reference.decode_latents(expected / smallest.config.vae.scale_factor)
    levels = np.clip(decoded.detach().numpy().transpose(0, 2, 3, 1) * 127.5 + 127.5, 0, 255)
    assert np.abs(np.stack(last.images) - levels).max() < 0.51  # rounded to the nearest level


@pytest.mark.parametrize("sampler", [name for name in samplers.SAMPLERS if name not in ("ddim", "plms")])
def test_every_sampler_is_k_diffusions_with_pytorchs_networks(smallest, embeddings, pynative, sampler):
    import torch

    from tests.reference.k_diffusion import sampling as k_diffusion
    from tests.reference.loops import torch_denoiser

    options = {"guider": "rescaled"} if sampler in ("euler", "dpmpp_2m_sde") else {}
    sampling = SamplingConfig(sample_step=5, schedule="karras", sampler=sampler, height=16, width=24, **options)
    request = image_request(TEXTS[0], 3, smallest.config, embeddings, sampling)
    *_, last = pynative.generate([request], embeddings, sampling)
    vae = smallest.config.vae
    sigmas = schedule.sampling_sigmas(smallest.config.schedule, sampling)
    start = request.initial_noise(vae)[None] * (sigmas[0] ** 2 + 1) ** 0.5
    steps = iter(range(9))

    def noise_sampler(*_):
        return torch.tensor(request.step_noise(vae, next(steps))[None])

    stochastic = {} if sampler in ("euler", "heun", "lms", "dpmpp_2m") else {"noise_sampler": noise_sampler}
    sizes = request.resolution.size_conditioning
    denoise = torch_denoiser(
        smallest.reference, prompts(TEXTS[:1], embeddings, sizes), None, 5.0, rescale=0.7 if options else 0.0
    )
    if sampler == "lcm":
        expected = start
        for step in range(5):
            denoised = denoise(torch.tensor(expected).float(), torch.tensor([sigmas[step]]).float()).numpy()
            expected = denoised + sigmas[step + 1] * request.step_noise(vae, step)
    else:
        reference = getattr(k_diffusion, f"sample_{sampler}")
        x = torch.tensor(start).float()
        expected = reference(denoise, x, torch.tensor(sigmas).float(), disable=True, **stochastic).numpy()
    assert relative_error(last.latents, expected) < 1e-4
