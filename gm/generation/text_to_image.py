"""Text to image: noise, a sampler, guidance, the decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gm import draws
from gm.backend import Backend, compiled
from gm.concepts.concept import Words
from gm.config import SamplingConfig
from gm.diffusion import denoiser, guidance, samplers, schedule
from gm.generation import sizes
from gm.sdxl import SDXL
from gm.text.tokenizer import END, pool_positions


@dataclass(frozen=True)
class Order:
    """One picture to draw; `noise` [z, h, w] replaces the seed's."""

    prompt: str
    seed: int
    noise: np.ndarray | None = None


@dataclass(frozen=True)
class Drawn:
    """Progress: `done` of `total` network steps; `pictures` uint8 [H, W, 3] are those finished by this step, if any."""

    done: int
    total: int
    pictures: tuple[np.ndarray, ...] = ()
    latents: np.ndarray | None = None  # of the pictures, unscaled by the decoder: float32 [N, z, h, w]
    previews: tuple[np.ndarray, ...] = ()  # of those that are being drawn, small, uint8 [h, w, 3]


class _Guided(nn.Cell):
    """Clean latents as the model sees them; what it heard is of the unconditional half first if there is guidance."""

    def __init__(self, model: SDXL, with_guidance: bool) -> None:
        super().__init__(auto_prefix=False)
        self.unet, self.with_guidance = model.unet, with_guidance

    def construct(
        self, x: Tensor, sigma: Tensor, time: Tensor, scale: Tensor, vector: Tensor, *heard: Tensor
    ) -> Tensor:
        y = denoiser.network_input(x, sigma)
        if self.with_guidance:
            y = ops.concat((y, y), axis=0)
        epsilon = self.unet.denoise(y, time.broadcast_to((y.shape[0],)), heard, vector)
        if self.with_guidance:
            unconditional, conditional = ops.chunk(epsilon, 2, axis=0)
            epsilon = guidance.guided(unconditional, conditional, scale)
        return denoiser.denoised(x, epsilon, sigma)


class _Condition(nn.Cell):
    """The model's conditioner, to be compiled for itself: elsewhere it is part of a larger graph."""

    def __init__(self, model: SDXL) -> None:
        super().__init__(auto_prefix=False)
        self.conditioner = model.conditioner

    def construct(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.conditioner(*inputs)


class _Listen(nn.Cell):
    """What the UNet hears of a context, the same in every step of the sampler."""

    def __init__(self, model: SDXL) -> None:
        super().__init__(auto_prefix=False)
        self.unet = model.unet

    def construct(self, context: Tensor) -> tuple[Tensor, ...]:
        return self.unet.listen(context)


class _Decoder(nn.Cell):
    """Scaled latents → pictures uint8 [N, H, W, 3]."""

    def __init__(self, model: SDXL) -> None:
        super().__init__(auto_prefix=False)
        self.autoencoder, self.scale = model.first_stage_model, model.config.autoencoder.scale_factor

    def construct(self, latents: Tensor) -> Tensor:
        pictures = self.autoencoder.decode(latents / self.scale)
        levels = ops.round(ops.clamp(pictures * 127.5 + 127.5, 0.0, 255.0))
        return ops.cast(levels.transpose((0, 2, 3, 1)), ms.uint8)


class Painter:
    """A model ready to draw; keeps its compiled graphs between calls of `draw`."""

    def __init__(self, model: SDXL, backend: Backend, pooling: str) -> None:
        self.model, self.backend, self.pooling = model, backend, pooling
        self.condition = compiled(_Condition(model), backend.graph, "the text encoders")
        self.listen = compiled(_Listen(model), backend.graph)
        self.plain = compiled(_Guided(model, False), backend.graph, "the drawing graph, with the first step")
        self.guided = compiled(_Guided(model, True), backend.graph, "the drawing graph, with the first step")
        self.decode = compiled(_Decoder(model), backend.graph, "the decoder")

    def draw(self, orders: Sequence[Order], words: Words, sampling: SamplingConfig) -> Iterator[Drawn]:
        """Draw every order, `sampling.batch_size` at a time, yielding after each network step.

        A picture depends on its own order only, not on the batch it is drawn in.
        """
        frame = sizes.frame(sampling, self.model.config)
        batch, steps = min(sampling.batch_size, len(orders)), sampling.sample_step
        total = -(-len(orders) // batch) * steps
        for first in range(0, len(orders), batch):
            wanted = orders[first : first + batch]
            # A short last batch is filled up with its last order, so that one graph serves all.
            filled = [*wanted, *[wanted[-1]] * (batch - len(wanted))]
            before = first // batch * steps
            for step, x in enumerate(self._walk(filled, words, sampling, frame), 1):
                if step < steps:
                    yield Drawn(before + step, total)
                else:
                    pictures = self.decode(x).asnumpy()[: len(wanted)]
                    yield Drawn(before + step, total, tuple(pictures), x.asnumpy()[: len(wanted)])

    def _walk(
        self, orders: list[Order], words: Words, sampling: SamplingConfig, frame: sizes.Frame
    ) -> Iterator[Tensor]:
        sigmas, times = schedule.sampling_levels(self.model.config.schedule, sampling.sample_step)
        context, vector = self._conditions([o.prompt for o in orders], words, frame)
        with_guidance = sampling.guidance_scale != 1.0
        if with_guidance:
            negative = self._negative(sampling.negative_prompt, len(orders), words, frame)
            context, vector = ops.concat((negative[0], context)), ops.concat((negative[1], vector))
        network = self.guided if with_guidance else self.plain
        scale, heard = Tensor(sampling.guidance_scale, ms.float32), self.listen(context)

        def denoise(x: Tensor, sigma: float, time: int) -> Tensor:
            return network(x, Tensor(sigma, ms.float32), Tensor([time], ms.float32), scale, vector, *heard)

        noise = np.stack([self.noise(order, frame) for order in orders])
        start = Tensor((noise * (sigmas[0] ** 2 + 1.0) ** 0.5).astype(np.float32))
        return samplers.by_name(sampling.sampler)(denoise, start, sigmas, times)

    def noise(self, order: Order, frame: sizes.Frame) -> np.ndarray:
        """Return the standard-normal noise [z, h, w] that `order` starts from."""
        if order.noise is not None:
            return order.noise
        config = self.model.config.autoencoder
        shape = (config.latent_channels, frame.height // config.reduction, frame.width // config.reduction)
        return draws.normal(shape, order.seed, "picture")

    def _conditions(self, prompts: Sequence[str], words: Words, frame: sizes.Frame) -> tuple[Tensor, Tensor]:
        ids_1, ids_2 = words.tokenizer(prompts, padding=END), words.tokenizer(prompts, padding=0)
        told = np.tile(np.asarray(frame.told, np.float32), (len(prompts), 1))
        return self.condition(
            Tensor(ids_1),
            Tensor(ids_2),
            Tensor(pool_positions(ids_2, self.pooling)),
            Tensor(words.rows_1),
            Tensor(words.rows_2),
            Tensor(told),
        )

    def _negative(self, prompt: str, count: int, words: Words, frame: sizes.Frame) -> tuple[Tensor, Tensor]:
        context, vector = self._conditions([prompt] * count, words, frame)
        if prompt.strip():
            return context, vector
        # SDXL was trained with dropped captions as zeros, in the context and in the pooled part of the vector.
        pooled = self.model.config.text_encoder_2.width
        nothing = ops.zeros((count, pooled), vector.dtype)
        return ops.zeros_like(context), ops.concat((nothing, vector[:, pooled:]), axis=1)
