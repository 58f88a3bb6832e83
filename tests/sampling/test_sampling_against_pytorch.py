"""gm/sampling/pipeline.py beside a guided Euler loop of diffusers' networks and scheduler."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch

from gm.config import SamplingConfig
from gm.diffusion import samplers, schedule
from gm.embeddings.embedding import Embedding, combine
from gm.runtime.backend import Backend
from gm.sampling import image_request, resolution
from gm.sampling.image_request import ImageRequest
from gm.sampling.pipeline import Pipeline
from gm.text.tokenizer import END, pool_positions
from tests.reference.inputs import Prompts, normal, relative_error

TEXTS = ("a <cat> in the snow", "portrait of <cat>, oil on canvas")


@pytest.fixture(scope="module")
def known(smallest):
    encoders = smallest.config.text_encoder_1, smallest.config.text_encoder_2
    return combine(
        [
            Embedding(
                "<cat>", dict(zip(("clip_l", "clip_g"), (0.02 * normal(90, 2, e.width) for e in encoders), strict=True))
            )
        ],
        smallest.config,
    )


def prompts(texts, known, told):
    ids_1, ids_2 = known.tokenizer(texts, padding=END), known.tokenizer(texts, padding=0)
    told = np.tile(np.asarray(told, np.float32), (len(texts), 1))
    return Prompts(
        ids_1, ids_2, pool_positions(ids_2, "end_of_text"), known.vectors["clip_l"], known.vectors["clip_g"], told
    )


@pytest.mark.parametrize(
    ("negative", "steps", "guidance", "graph"),
    [("", 20, 5.0, False), ("blurry, ugly", 7, 7.5, True), ("", 13, 1.0, False)],
    ids=["empty-negative", "negative-graph", "no-guidance"],
)
def test_latents_and_images(smallest, known, negative, steps, guidance, graph):
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
    frame = resolution.image_size(sampling, smallest.config)
    noise = normal(91, 2, 8, 17, 12)
    pipeline = Pipeline(smallest.model, Backend("CPU", graph, ms.float32), "end_of_text")
    requests = [ImageRequest(text, 0, each) for text, each in zip(TEXTS, noise, strict=True)]
    *_, last = pipeline.draw(requests, known, sampling)
    without = prompts([negative] * 2, known, frame.told) if negative else None
    expected = torch_euler(
        smallest.reference,
        noise,
        prompts(TEXTS, known, frame.told),
        without,
        steps=steps,
        guidance_scale=guidance,
    )[-1]
    assert last.latents is not None
    assert relative_error(last.latents, expected) < 1e-4
    decoded = smallest.reference.decode_latents(expected / smallest.config.vae.scale_factor)
    levels = np.clip(decoded.detach().numpy().transpose(0, 2, 3, 1) * 127.5 + 127.5, 0, 255)
    assert np.abs(np.stack(last.images) - levels).max() < 0.51  # rounded to the nearest level


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_every_sampler_is_k_diffusions_with_pytorchs_networks(smallest, known, sampler):
    from tests.reference.k_diffusion import sampling as k_diffusion
    from tests.reference.loops import torch_denoiser

    options = {"guider": "rescaled"} if sampler in ("euler", "dpmpp_2m_sde") else {}
    sampling = SamplingConfig(sample_step=5, schedule="karras", sampler=sampler, height=16, width=24, **options)
    frame = resolution.image_size(sampling, smallest.config)
    order = ImageRequest(TEXTS[0], 3)
    pipeline = Pipeline(smallest.model, Backend("CPU", False, ms.float32), "end_of_text")
    *_, last = pipeline.draw([order], known, sampling)
    vae = smallest.config.vae
    sigmas = schedule.sampling_sigmas(smallest.config.schedule, sampling)
    start = image_request.noise(order, frame, vae)[None] * (sigmas[0] ** 2 + 1) ** 0.5
    drawn = iter(range(9))

    def fresh(*_):
        return torch.tensor(image_request.fresh_noise(order, frame, vae, next(drawn))[None])

    stochastic = {} if sampler in ("euler", "heun", "lms", "dpmpp_2m") else {"noise_sampler": fresh}
    denoise = torch_denoiser(
        smallest.reference, prompts(TEXTS[:1], known, frame.told), None, 5.0, rescale=0.7 if options else 0.0
    )
    if sampler == "lcm":
        expected = start
        for sigma, following, step in zip(sigmas[:-1], sigmas[1:], range(5), strict=True):
            clean = denoise(torch.tensor(expected).float(), torch.tensor([sigma]).float()).numpy()
            expected = clean + following * image_request.fresh_noise(order, frame, vae, step)
    else:
        walk = getattr(k_diffusion, f"sample_{sampler}")
        expected = walk(
            denoise, torch.tensor(start).float(), torch.tensor(sigmas).float(), disable=True, **stochastic
        ).numpy()
    assert relative_error(last.latents, expected) < 1e-4
