"""Classifier-free guidance around a UNet, in the form that k-diffusion's samplers call."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gm.config import SamplingConfig
from gm.diffusion import denoiser, guidance, schedule
from gm.embeddings.embedding import LoadedEmbeddings
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime.backend import Backend, compile_cell
from gm.sampling.conditioning import PromptEncoder
from gm.sampling.request import ImageRequest
from gm.text.chunks import TokenChunks, pad_chunks


class GuidedUNet(nn.Cell):
    """UNet and guider (`gm.diffusion.guidance`) → denoised latents; y and context have the unconditional half first."""

    def __init__(self, model: StableDiffusion, guider: str) -> None:
        super().__init__(auto_prefix=False)
        self.unet = model.unet
        self.with_guidance = guider != "none"
        self.with_rescaling = guider == "rescaled"
        self.prediction = model.config.schedule.prediction

    def construct(
        self,
        x: Tensor,
        sigma: Tensor,
        timestep: Tensor,
        guidance_scale: Tensor,
        guidance_rescale: Tensor,
        y: Tensor | None,
        *context_kv: Tensor,
    ) -> Tensor:
        model_input = denoiser.scale_model_input(x, sigma)
        if self.with_guidance:
            model_input = ops.concat((model_input, model_input), axis=0)
        timesteps = timestep.broadcast_to((model_input.shape[0],))
        output = self.unet.forward(model_input, timesteps, context_kv, y)
        if self.with_guidance:
            unconditional, conditional = ops.chunk(output, 2, axis=0)
            output = guidance.classifier_free_guidance(unconditional, conditional, guidance_scale)
            if self.with_rescaling:
                output = guidance.rescale_guidance(output, conditional, guidance_rescale)
        return denoiser.predict_denoised(x, output, sigma, self.prediction)


class ContextProjection(nn.Cell):
    """Keys and values of a context in all cross-attention layers, the same in every step of one prompt."""

    def __init__(self, model: StableDiffusion) -> None:
        super().__init__(auto_prefix=False)
        self.unet = model.unet

    def construct(self, context: Tensor) -> tuple[Tensor, ...]:
        return self.unet.project_context(context)


class CompiledModel:
    """A base model or refiner with the graphs that sampling runs, compiled on first use and kept between batches."""

    def __init__(self, model: StableDiffusion, backend: Backend, pooling: str) -> None:
        self.model = model
        self.training_sigmas = schedule.training_sigmas(model.config.schedule)
        self.prompt_encoder = PromptEncoder(model, backend, pooling)
        self.project_context = compile_cell(ContextProjection(model), backend.graph)
        name = "the sampling graph, with the first step"
        self.guided_unets = {
            guider: compile_cell(GuidedUNet(model, guider), backend.graph, name) for guider in guidance.GUIDERS
        }


class CFGDenoiser:
    """Denoiser of one batch with classifier-free guidance (Ho and Salimans, 2022): `denoise(x, sigma, step)`.

    All requests of a batch have the same height, width, steps and guidance scale. `step` counts from `first_step` of
    the prompts' schedules. With a mask the initial latents replace what the mask protects, as in AUTOMATIC1111's class
    of this name, so that no sampler needs to know of masks. `denoised` keeps the last result, for previews.
    """

    def __init__(
        self,
        compiled: CompiledModel,
        requests: Sequence[ImageRequest],
        embeddings: LoadedEmbeddings,
        sampling: SamplingConfig,
        first_step: int = 0,
    ) -> None:
        self.compiled = compiled
        self.requests = requests
        self.embeddings = embeddings
        self.sampling = sampling
        self.first_step = first_step
        self.guider = guider_name(sampling, requests[0].guidance_scale)
        self.guidance_scale = Tensor(requests[0].guidance_scale, ms.float32)
        self.guidance_rescale = Tensor(sampling.guidance_rescale, ms.float32)
        self.denoised: Tensor | None = None
        self._conditioning: dict[tuple[int, ...], tuple[Tensor | None, tuple[Tensor, ...]]] = {}
        prompts = [request.prompt for request in requests]
        if self.guider != "none":
            prompts += [request.negative_prompt for request in requests]
        self._schedules = [prompt.schedule for prompt in prompts]
        self._mask: Tensor | None = None
        if requests[0].mask is not None:
            mask = stack([request.mask for request in requests])[:, None]
            init_latents = stack([request.init_latents for request in requests])
            self._mask = Tensor(mask)
            self._protected = Tensor(init_latents * (1.0 - mask))

    def __call__(self, x: Tensor, sigma: float, step: int) -> Tensor:
        """Return the denoised latents [N, z, h, w] of noisy latents `x` at noise level `sigma`."""
        y, context_kv = self._conditioning_of_step(self.first_step + step)
        timestep = schedule.sigma_to_timestep(self.compiled.training_sigmas, np.array([sigma])).astype(np.float32)
        denoised = self.compiled.guided_unets[self.guider](
            x, Tensor(sigma, ms.float32), Tensor(timestep), self.guidance_scale, self.guidance_rescale, y, *context_kv
        )
        if self._mask is not None:
            denoised = denoised * self._mask + self._protected
        self.denoised = denoised
        return denoised

    def without_noise(self, x: Tensor, sigma: float) -> Tensor:
        """Return the latents to decode, of `x` at the noise level `sigma` at which the sampler ended, 0 or very low.

        The protected area is reset to the initial latents, as in diffusers' inpainting.
        """
        if sigma == 0:
            return x
        latents = denoiser.scale_model_input(x, sigma)
        return latents if self._mask is None else latents * self._mask + self._protected

    def _conditioning_of_step(self, step: int) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Return y and the projected context of the schedules' prompts in `step`; each is encoded once."""
        key = tuple(prompt_schedule.by_step[step] for prompt_schedule in self._schedules)
        if key not in self._conditioning:
            texts = [
                prompt_schedule.variants[number] for prompt_schedule, number in zip(self._schedules, key, strict=True)
            ]
            context, y = self._encode(texts)
            self._conditioning[key] = y, self.compiled.project_context(context)
        return self._conditioning[key]

    def _encode(self, texts: Sequence[TokenChunks]) -> tuple[Tensor, Tensor | None]:
        """Return context and y of the prompts' texts; with guidance the unconditional ones, which come last, first."""
        encoder = self.compiled.prompt_encoder
        length = max(len(text) for text in texts)
        padded = [pad_chunks(text, length) for text in texts]
        count = len(self.requests)
        sizes = self._size_conditioning(self.sampling.aesthetic_score)
        context, y = encoder.encode(padded[:count], self.embeddings, sizes)
        if self.guider == "none":
            return context, y
        sizes = self._size_conditioning(self.sampling.negative_aesthetic_score)
        # SDXL's base model was trained with zeros where the refiner and Stable Diffusion had an empty caption.
        if self.requests[0].negative_prompt.text.strip() or not self.compiled.model.config.zero_unconditional:
            negative_context, negative_y = encoder.encode(padded[count:], self.embeddings, sizes)
        else:
            negative_context, negative_y = encoder.encode_unconditional(context, self.embeddings, sizes)
        return ops.concat((negative_context, context)), None if y is None else ops.concat((negative_y, y))

    def _size_conditioning(self, aesthetic_score: float) -> list[tuple[float, ...]]:
        """Return the size conditioning of each request; a refiner's has the score instead of the target size."""
        sizes = [request.resolution.size_conditioning for request in self.requests]
        if self.compiled.model.config.is_refiner:
            return [(*size[:4], aesthetic_score) for size in sizes]
        return list(sizes)


def guider_name(sampling: SamplingConfig, guidance_scale: float) -> str:
    """Return the name of the guider; a scale of 1 is no guidance and saves the unconditional half."""
    return "none" if guidance_scale == 1.0 else guidance.resolve_name(sampling.guider)


def stack(arrays: Sequence[np.ndarray | None]) -> np.ndarray:
    """Return arrays of a batch as one, float32 [N, …]."""
    return np.stack([np.asarray(array, np.float32) for array in arrays])
