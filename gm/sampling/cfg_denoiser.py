"""One network with all it takes to ask it: conditions, guidance, and a graph for each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gm.config import SamplingConfig
from gm.diffusion import denoiser, guidance, schedule
from gm.embeddings.embedding import LoadedEmbeddings
from gm.models.sdxl import SDXL
from gm.runtime.backend import Backend, compile_cell
from gm.sampling.conditioning import PromptEncoder
from gm.sampling.resolution import ImageSize
from gm.text.chunks import TokenChunks, pad_chunks
from gm.text.prompt_parser import PromptSchedule, parse

Predict = Callable[[Tensor, float, int], Tensor]


class _Guided(nn.Cell):
    """Clean latents as the model sees them; what it heard is of the unconditional half first if there is guidance."""

    def __init__(self, model: SDXL, guider: str) -> None:
        super().__init__(auto_prefix=False)
        self.unet, self.with_guidance, self.with_rescaling = model.unet, guider != "none", guider == "rescaled"

    def construct(
        self, x: Tensor, sigma: Tensor, time: Tensor, scale: Tensor, share: Tensor, vector: Tensor, *context_kv: Tensor
    ) -> Tensor:
        y = denoiser.scale_model_input(x, sigma)
        if self.with_guidance:
            y = ops.concat((y, y), axis=0)
        epsilon = self.unet.forward(y, time.broadcast_to((y.shape[0],)), context_kv, vector)
        if self.with_guidance:
            unconditional, conditional = ops.chunk(epsilon, 2, axis=0)
            epsilon = guidance.classifier_free_guidance(unconditional, conditional, scale)
            if self.with_rescaling:
                epsilon = guidance.rescale_guidance(epsilon, conditional, share)
        return denoiser.predict_denoised(x, epsilon, sigma)


class _Listen(nn.Cell):
    """What the UNet hears of a context, the same in every step that shows it the same prompt."""

    def __init__(self, model: SDXL) -> None:
        super().__init__(auto_prefix=False)
        self.unet = model.unet

    def construct(self, context: Tensor) -> tuple[Tensor, ...]:
        return self.unet.project_context(context)


class CFGDenoiser:
    """A model ready to be asked for clean latents; keeps its compiled graphs."""

    def __init__(self, model: SDXL, backend: Backend, pooling: str) -> None:
        self.model = model
        self.trained = schedule.training_sigmas(model.config.schedule)
        self.conditions = PromptEncoder(model, backend, pooling)
        self.project_context = compile_cell(_Listen(model), backend.graph)
        what = "the drawing graph, with the first step"
        self.networks = {
            guider: compile_cell(_Guided(model, guider), backend.graph, what) for guider in guidance.GUIDERS
        }

    def predictor(
        self, prompts: Sequence[str], words: LoadedEmbeddings, frame: ImageSize, sampling: SamplingConfig
    ) -> Predict:
        """Return the function from (latents [N, z, h, w], their σ, the step) to clean latents of the prompts [N].

        A step shows the prompts as they read then (`gm.text.prompt_parser`); each reading is heard once.
        """
        guider = _guider(sampling)
        readings = self._readings(prompts, words, sampling)
        scale, share = Tensor(sampling.guidance_scale, ms.float32), Tensor(sampling.guidance_rescale, ms.float32)
        network = self.networks[guider]

        @functools.cache
        def context_kv(shown: tuple[int, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            variants = [reading.variants[number] for reading, number in zip(readings, shown, strict=True)]
            context, vector = self._conditions(variants, len(prompts), words, frame, sampling)
            return vector, self.project_context(context)

        def predict(x: Tensor, sigma: float, step: int) -> Tensor:
            vector, keys = context_kv(tuple(reading.by_step[step] for reading in readings))
            time = schedule.sigma_to_timestep(self.trained, np.array([sigma])).astype(np.float32)
            return network(x, Tensor(sigma, ms.float32), Tensor(time), scale, share, vector, *keys)

        return predict

    def length(self, prompt: str, words: LoadedEmbeddings, sampling: SamplingConfig) -> int:
        """Return the number of chunks in which the model is shown `prompt` and what it keeps away from."""
        return max(len(reading.variants[0]) for reading in self._readings([prompt], words, sampling))

    def _readings(
        self, prompts: Sequence[str], words: LoadedEmbeddings, sampling: SamplingConfig
    ) -> list[PromptSchedule]:
        """Return what is read of each prompt, and, last, of the negative one if there is guidance."""
        texts = [*prompts, sampling.negative_prompt] if _guider(sampling) != "none" else prompts
        return [parse(text, words.tokenizer, sampling.sample_step, sampling.prompt_weights) for text in texts]

    def _conditions(
        self,
        variants: Sequence[TokenChunks],
        count: int,
        words: LoadedEmbeddings,
        frame: ImageSize,
        sampling: SamplingConfig,
    ) -> tuple[Tensor, Tensor]:
        """Return context and vector of `count` texts; those of the negative one, if there is one more, come first."""
        length = max(map(len, variants))
        variants = [pad_chunks(variant, length) for variant in variants]
        context, vector = self.conditions.of(variants[:count], words, self._told(frame, sampling.aesthetic_score))
        if len(variants) == count:
            return context, vector
        told = self._told(frame, sampling.negative_aesthetic_score)
        # The refiner was trained with an empty caption where the base model was trained with none.
        if sampling.negative_prompt.strip() or self.model.config.is_refiner:
            negative = self.conditions.of([variants[count]] * count, words, told)
        else:
            negative = self.conditions.nothing(context, words, told)
        return ops.concat((negative[0], context)), ops.concat((negative[1], vector))

    def _told(self, frame: ImageSize, score: float) -> tuple[float, ...]:
        """Return what the model is told of sizes; a refiner, instead of the target's, how beautiful the image is."""
        return (*frame.told[:4], score) if self.model.config.is_refiner else frame.told


def _guider(sampling: SamplingConfig) -> str:
    """Return the guider's name; at a scale of 1 there is nothing to guide, and half the work to save."""
    return "none" if sampling.guidance_scale == 1.0 else guidance.resolve_name(sampling.guider)
