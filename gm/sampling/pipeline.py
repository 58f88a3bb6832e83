"""From orders to images: noise, a sampler, one network or two, the decoder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from mindspore import Tensor

from gm.config import SamplingConfig
from gm.diffusion import samplers, schedule
from gm.diffusion.samplers import NoiseSampler
from gm.embeddings.embedding import LoadedEmbeddings
from gm.models.sdxl import SDXL
from gm.runtime.backend import Backend
from gm.sampling import image_request as asked
from gm.sampling import refiner, resolution
from gm.sampling.cfg_denoiser import CFGDenoiser
from gm.sampling.image_request import ImageRequest, SamplingProgress
from gm.sampling.resolution import ImageSize
from gm.sampling.vae_decode import VAEDecoder


class Pipeline:
    """A model ready to draw; keeps its compiled graphs, and a refiner if one was asked for, between calls of `draw`."""

    def __init__(self, model: SDXL, backend: Backend, pooling: str) -> None:
        self.model, self.backend, self.pooling = model, backend, pooling
        self.base = CFGDenoiser(model, backend, pooling)
        self.decoder = VAEDecoder(model, backend)
        self.refiners: dict[tuple[str, str], CFGDenoiser] = {}

    def draw(
        self, requests: Sequence[ImageRequest], words: LoadedEmbeddings, sampling: SamplingConfig
    ) -> Iterator[SamplingProgress]:
        """Draw every order, `sampling.batch_size` at a time, yielding after each step of the sampler.

        An image depends on its own order only, not on the batch it is drawn in.
        """
        frame = resolution.image_size(sampling, self.model.config)
        batches = self._batches(requests, words, sampling)
        steps = img2img_steps(sampling) if requests and requests[0].image is not None else sampling.sample_step
        done, total = 0, len(batches) * steps
        for wanted in batches:
            size = min(sampling.batch_size, len(requests))
            # A short batch is filled up with its last order, so that one graph serves all.
            filled = [*wanted, *[wanted[-1]] * (size - len(wanted))]
            for step, (x, clean) in enumerate(self._walk(filled, words, sampling, frame, steps), 1):
                done += 1
                if step == steps:
                    images = self.decoder.images(x, sampling)[: len(wanted)]
                    yield SamplingProgress(done, total, tuple(images), x.asnumpy()[: len(wanted)])
                elif sampling.preview_interval and step % sampling.preview_interval == 0:
                    yield SamplingProgress(done, total, previews=tuple(self.decoder.preview(clean)[: len(wanted)]))
                else:
                    yield SamplingProgress(done, total)

    def _batches(
        self, requests: Sequence[ImageRequest], words: LoadedEmbeddings, sampling: SamplingConfig
    ) -> list[list[ImageRequest]]:
        """Return the orders in batches; in each, all prompts are shown in as many chunks."""
        groups = itertools.groupby(requests, lambda order: self.base.length(order.prompt, words, sampling))
        alike = [list(group) for _, group in groups]
        size = sampling.batch_size
        return [group[first : first + size] for group in alike for first in range(0, len(group), size)]

    def _walk(
        self,
        requests: list[ImageRequest],
        words: LoadedEmbeddings,
        sampling: SamplingConfig,
        frame: ImageSize,
        steps: int,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (latents, the clean latents the network believes in) after each of `steps`."""
        config = self.model.config
        sigmas = schedule.sampling_sigmas(config.schedule, sampling)[-steps - 1 :]
        x = self._start(requests, frame, float(sigmas[0]))
        for stage, first, last in self._legs(sampling, steps):
            predict = stage.predictor([order.prompt for order in requests], words, frame, sampling)
            denoise = Watched(predict, requests, sampling.sample_step - steps + first)

            def draw(step: int, first: int = first) -> Tensor:
                made = [asked.fresh_noise(order, frame, config.vae, first + step) for order in requests]
                return Tensor(np.stack(made))

            fresh = NoiseSampler(
                draw, sampling.eta, sampling.s_noise, sampling.s_churn, sampling.s_tmin, sampling.s_tmax
            )
            walk = samplers.SAMPLERS[samplers.resolve_name(sampling.sampler)]
            before = x
            for x in walk(denoise, before, sigmas[first : last + 1], fresh):
                yield x, denoise.clean

    def _start(self, requests: list[ImageRequest], frame: ImageSize, sigma: float) -> Tensor:
        """Return what is drawn from: noise alone as the network knows it, or an image under noise."""
        noise = np.stack([asked.noise(order, frame, self.model.config.vae) for order in requests])
        if requests[0].image is None:
            return Tensor((noise * (sigma**2 + 1.0) ** 0.5).astype(np.float32))
        images = _stacked([order.image for order in requests])
        return Tensor((images + noise * sigma).astype(np.float32))

    def _legs(self, sampling: SamplingConfig, steps: int) -> list[tuple[CFGDenoiser, int, int]]:
        """Return (network, first step, the one after its last) of each part of the way."""
        if not sampling.add_pipeline:
            return [(self.base, 0, steps)]
        refined = min(steps, schedule.step_count(sampling.stage2strength, sampling.sample_step))
        legs = [(self.base, 0, steps - refined), (self._refiner(sampling), steps - refined, steps)]
        return [leg for leg in legs if leg[1] < leg[2]]

    def _refiner(self, sampling: SamplingConfig) -> CFGDenoiser:
        place = sampling.pipeline_config, sampling.pipeline_weight
        if place not in self.refiners:
            self.refiners = {
                place: CFGDenoiser(refiner.load(sampling, self.model.config, self.backend), self.backend, self.pooling)
            }
        return self.refiners[place]


class Watched:
    """A `Denoise` of `gm.diffusion.samplers`; keeps what a mask protects, and what was believed in last, `clean`."""

    def __init__(
        self, predict: Callable[[Tensor, float, int], Tensor], requests: list[ImageRequest], first: int
    ) -> None:
        self.predict, self.first = predict, first
        self.clean: Tensor = None
        self.kept = self.redrawn = None
        if requests[0].mask is not None:
            masks = _stacked([order.mask for order in requests])[:, None]
            images = _stacked([order.image for order in requests])
            self.redrawn, self.kept = Tensor(masks), Tensor(images * (1.0 - masks))

    def __call__(self, x: Tensor, sigma: float, step: int) -> Tensor:
        self.clean = self.predict(x, sigma, self.first + step)
        if self.kept is not None:
            # Where the clean latents are known, the way from any noise leads to them: no sampler need know of masks.
            self.clean = self.clean * self.redrawn + self.kept
        return self.clean


def img2img_steps(sampling: SamplingConfig) -> int:
    """Return how many of the steps are walked from an image: the share `strength` of them, rounded down."""
    return schedule.step_count(sampling.strength, sampling.sample_step)


def _stacked(arrays: Sequence[np.ndarray | None]) -> np.ndarray:
    return np.stack([np.asarray(array, np.float32) for array in arrays])
