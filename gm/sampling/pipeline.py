"""Requests → images: noise, a sampler, a base model and perhaps a refiner, the VAE decoder."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from gm.checkpoints import loading
from gm.config import SamplingConfig
from gm.diffusion import denoiser, samplers, schedule
from gm.diffusion.sampler_steps import NoiseSampler
from gm.embeddings.embedding import LoadedEmbeddings
from gm.errors import shorten
from gm.models import stable_diffusion
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime.backend import Backend
from gm.sampling import finite
from gm.sampling.cfg_denoiser import CFGDenoiser, CompiledModel, guider_name, stack
from gm.sampling.request import ImageRequest, check_refiner
from gm.sampling.vae_decode import VAEDecoder

log = logging.getLogger("gm")

_MAX_PROMPT = 60  # characters of a prompt in a message


@dataclass(frozen=True)
class SamplingProgress:
    """Progress after a sampler step: `done` of `total` steps.

    images: uint8 [H, W, 3], those that this step finished
    latents: float32 [N, z, h, w], scaled, of these images
    previews: uint8 [h, w, 3], small, of the images in progress
    skipped: number of images that are left unfinished, on request; their other steps count as done
    """

    done: int
    total: int
    images: tuple[np.ndarray, ...] = ()
    latents: np.ndarray | None = None
    previews: tuple[np.ndarray, ...] = ()
    skipped: int = 0


def never() -> bool:
    """Skip nothing."""
    return False


class Pipeline:
    """A loaded model as a text-to-image, img2img and inpainting pipeline.

    It keeps its compiled graphs, and the refiner if one was used, between calls of `generate`.
    """

    def __init__(self, model: StableDiffusion, backend: Backend, pooling: str) -> None:
        self.model = model
        self.backend = backend
        self.pooling = pooling
        self.base = CompiledModel(model, backend, pooling)
        self.decoder = VAEDecoder(model, backend)
        self.refiners: dict[tuple[str, str], CompiledModel] = {}

    def generate(
        self,
        requests: Sequence[ImageRequest],
        embeddings: LoadedEmbeddings,
        sampling: SamplingConfig,
        skip: Callable[[], bool] = never,
    ) -> Iterator[SamplingProgress]:
        """Generate all requested images, `sampling.batch_size` at a time, yielding after each sampler step.

        `sampling` sets what the images share: sampler, schedule, guider, refiner, decoding. What its fields say of one
        image (prompt, seed, size, steps, scale, strength) is not read: the requests have it. An image depends on its
        own request, not on the batch that it is generated in. `skip`, asked after each step but a batch's last, tells
        whether to leave the batch unfinished and go on with the next. Raises UserError for an image that is not finite,
        with its number, the step and what to do.
        """
        batches = self._batches(requests, sampling)
        size = min(sampling.batch_size, len(requests))
        done, total = 0, sum(batch[0].steps - batch[0].first_step for batch in batches)
        first = 0
        for batch in batches:
            names = _image_names(batch, first, len(requests))
            first += len(batch)
            # The last request fills up a short batch, so that one graph serves all.
            filled = [*batch, *[batch[-1]] * (size - len(batch))]
            steps = batch[0].steps - batch[0].first_step
            for step, (x, denoised) in enumerate(self._sample(filled, embeddings, sampling), 1):
                done += 1
                finite.check_latents(x, names, step, steps, self.backend)
                if step == steps:
                    images = self.decoder.decode(x, sampling, names)[: len(batch)]
                    yield SamplingProgress(done, total, tuple(images), x.asnumpy()[: len(batch)])
                elif sampling.preview_interval and step % sampling.preview_interval == 0:
                    previews = self.decoder.preview(denoised)[: len(batch)]
                    yield SamplingProgress(done, total, previews=tuple(previews))
                else:
                    yield SamplingProgress(done, total)
                if step < steps and skip():
                    done += steps - step
                    yield SamplingProgress(done, total, skipped=len(batch))
                    break

    def _batches(self, requests: Sequence[ImageRequest], sampling: SamplingConfig) -> list[list[ImageRequest]]:
        """Return the requests in batches that one graph can take: of one size, schedule and number of chunks."""
        groups = (list(group) for _, group in itertools.groupby(requests, lambda each: _batch_key(each, sampling)))
        size = sampling.batch_size
        return [group[first : first + size] for group in groups for first in range(0, len(group), size)]

    def _sample(
        self, requests: list[ImageRequest], embeddings: LoadedEmbeddings, sampling: SamplingConfig
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (latents, denoised latents) of a batch after each step."""
        sampling = dataclasses.replace(sampling, sample_step=requests[0].steps)
        start = requests[0].first_step
        sigmas = schedule.sampling_sigmas(self.model.config.schedule, sampling)[start:]
        sampler = samplers.SAMPLERS[samplers.resolve_name(sampling.sampler)]
        x = self._initial_latents(requests, float(sigmas[0]))
        for compiled, first, last in self._stages(sampling, len(sigmas) - 1):
            denoise = CFGDenoiser(compiled, requests, embeddings, sampling, start + first)
            noise_sampler = self._noise_sampler(requests, sampling, first)
            steps = sampler(denoise, x, sigmas[first : last + 1], noise_sampler)
            for step, x in enumerate(steps, first + 1):
                is_last = step == len(sigmas) - 1
                yield denoise.without_noise(x, float(sigmas[-1])) if is_last else x, denoise.denoised

    def _initial_latents(self, requests: list[ImageRequest], sigma: float) -> Tensor:
        """Return the latents at noise level `sigma`: of noise alone, or of the initial latents under noise."""
        noise = np.stack([request.initial_noise(self.model.config.vae) for request in requests])
        if requests[0].init_latents is None or sigma >= denoiser.TERMINAL_SIGMA:
            # Noise alone, with the variance of latents and noise together, 1 + σ², as in the UNet's training.
            return Tensor((noise * (sigma**2 + 1.0) ** 0.5).astype(np.float32))
        init_latents = stack([request.init_latents for request in requests])
        return Tensor((init_latents + noise * sigma).astype(np.float32))

    def _noise_sampler(self, requests: list[ImageRequest], sampling: SamplingConfig, first: int) -> NoiseSampler:
        """Return the noise of stochastic samplers, a stream for each image, from step `first` on."""
        vae = self.model.config.vae

        def sample(step: int) -> Tensor:
            return Tensor(np.stack([request.step_noise(vae, first + step) for request in requests]))

        eta = sampling.ddim_eta if samplers.resolve_name(sampling.sampler) == "ddim" else sampling.eta
        return NoiseSampler(sample, eta, sampling.s_noise, sampling.s_churn, sampling.s_tmin, sampling.s_tmax)

    def _stages(self, sampling: SamplingConfig, steps: int) -> list[tuple[CompiledModel, int, int]]:
        """Return (model, first step, step after the last) of each part of the `steps` to take."""
        if not sampling.add_pipeline:
            return [(self.base, 0, steps)]
        boundary = steps - min(steps, schedule.step_count(sampling.stage2strength, sampling.sample_step))
        stages = [(self.base, 0, boundary), (self._refiner(sampling), boundary, steps)]
        return [stage for stage in stages if stage[1] < stage[2]]

    def _refiner(self, sampling: SamplingConfig) -> CompiledModel:
        """Return the refiner (Podell et al., 2023, section 2.5), loaded on first use; another takes its place."""
        paths = sampling.pipeline_config, sampling.pipeline_weight
        if paths not in self.refiners:
            self.refiners.clear()
            self.refiners[paths] = CompiledModel(self._load_refiner(sampling), self.backend, self.pooling)
        return self.refiners[paths]

    def _load_refiner(self, sampling: SamplingConfig) -> StableDiffusion:
        """Return the refiner without its VAE, which is the base model's."""
        config = check_refiner(self.model.config, sampling)
        model = stable_diffusion.build(config, self.backend.dtype)
        model.release_vae()
        loading.load_weights(
            model, sampling.pipeline_weight, config, self.backend.keep_half_above, unused={"vae": None}
        )
        log.info("loaded %s", sampling.pipeline_weight)
        return model


def _image_names(batch: Sequence[ImageRequest], first: int, total: int) -> list[str]:
    """Return how messages name the images of a batch, whose first has the number `first` of `total`, from 0."""
    return [
        f'image {first + k + 1} of {total} (seed {request.seed}, "{shorten(request.prompt.text, _MAX_PROMPT)}")'
        for k, request in enumerate(batch)
    ]


def _batch_key(request: ImageRequest, sampling: SamplingConfig) -> tuple[object, ...]:
    """Return the options that the requests of a batch have in common."""
    prompts = [request.prompt]
    if guider_name(sampling, request.guidance_scale) != "none":
        prompts.append(request.negative_prompt)
    num_chunks = max(len(prompt.schedule.variants[0]) for prompt in prompts)
    has_negative_prompt = bool(request.negative_prompt.text.strip())
    return (
        (request.resolution.height, request.resolution.width),
        (request.steps, request.first_step),
        request.guidance_scale,
        has_negative_prompt,
        num_chunks,
        request.init_latents is None,
        request.mask is None,
    )
