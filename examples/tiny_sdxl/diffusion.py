"""Second half of the recipe: UNet and both text encoders together, from latents of the world and their captions.

The toolkit's own trick serves here, too: the rows of the words that captions use are learned as arguments of the
encoders, and written into the token tables in the end. The other rows of the tables are never touched.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from examples.tiny_sdxl import captions, world
from gm.config.model import ModelConfig
from gm.diffusion import denoiser, schedule
from gm.models.sdxl import SDXL
from gm.runtime import rng
from gm.text.tokenizer import END, START, VOCAB_SIZE, Tokenizer, pool_positions

_UNKNOWN_SPREAD = 0.05  # of the rows of words that no caption holds: they are heard, and say little
_KNOWN_SPREAD = 1.0
_HASTE = 30.0  # how much faster than weights rows learn: most words are met rarely, and Adam's steps are all alike


class Loss(nn.Cell):
    """The toolkit's diffusion loss with every weight free; `told` [N, 1] is 0 where the caption is kept from it."""

    def __init__(self, model: SDXL, rows: Sequence[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.conditioner, self.unet, (self.clip_l, self.clip_g) = model.conditioner, model.unet, rows
        pooled = model.config.text_encoder_2.width
        self.is_pooled = Tensor((np.arange(model.config.unet.adm_in_channels) < pooled).astype(np.float32))

    def construct(
        self,
        x: Tensor,
        noise: Tensor,
        timestep: Tensor,
        ids_1: Tensor,
        ids_2: Tensor,
        pool_position: Tensor,
        sizes: Tensor,
        told: Tensor,
    ) -> Tensor:
        clip_l, clip_g = _HASTE * self.clip_l, _HASTE * self.clip_g
        context, vector = self.conditioner((ids_1, ids_2), (clip_l, clip_g), pool_position, sizes)
        # SDXL hears no caption as zeros, in the context and in the pooled part of the vector.
        context, vector = context * told.expand_dims(-1), vector * (1.0 - self.is_pooled * (1.0 - told))
        return denoiser.loss(self.unet(x, timestep, context, vector), noise)


class Feed:
    """Batches of the world, by the numbers of their samples: scenes in turn, captions and noise new every time."""

    def __init__(self, latents: np.ndarray, seed: int, config: ModelConfig) -> None:
        self.latents, self.seed, self.side = latents, seed, config.resolution
        self.tokenizer = Tokenizer(config.text_encoder_1.context_length)
        self.sigmas = schedule.training_sigmas(config.schedule)
        known = {START, END, 0}.union(*(self.tokenizer.encode(text) for text in captions.every_word()))
        self.known = np.array(sorted(known))
        self.row_of = np.arange(VOCAB_SIZE, dtype=np.int32)
        self.row_of[self.known] = VOCAB_SIZE + np.arange(len(known))

    def batch(self, samples: range) -> tuple[Tensor, ...]:
        """Return what `Loss` takes."""
        scenes = [sample % len(self.latents) for sample in samples]
        spoken = [
            captions.caption(world.scene(self.seed, k), self.seed, n) for k, n in zip(scenes, samples, strict=True)
        ]
        texts = [text or "" for text in spoken]
        timestep = np.array([self._timestep(n) for n in samples])
        noise = np.stack([rng.normal(self.latents.shape[1:], self.seed, "noise", n) for n in samples])
        sigma = self.sigmas[timestep].astype(np.float32)[:, None, None, None]
        ids_1, ids_2 = self.tokenizer(texts, padding=END), self.tokenizer(texts, padding=0)
        return (
            Tensor(denoiser.scale_model_input(denoiser.add_noise(self.latents[scenes], noise, sigma), sigma)),
            Tensor(noise),
            Tensor(timestep.astype(np.float32)),
            Tensor(self.row_of[ids_1]),
            Tensor(self.row_of[ids_2]),
            Tensor(pool_positions(ids_2, "end_of_text")),
            Tensor(np.stack([self._sizes(n) for n in samples])),
            Tensor(np.array([[text is not None] for text in spoken], np.float32)),
        )

    def _timestep(self, sample: int) -> int:
        """Return a noise level, high ones more often: what is where in which colour is decided there, and an error of
        it is small beside so much noise."""
        return int(len(self.sigmas) * rng.generator(self.seed, "timestep", sample).random() ** 0.5)

    def _sizes(self, sample: int) -> np.ndarray:
        """Return sizes that people's images have: no scene depends on them, and the model learns that."""
        generator = rng.generator(self.seed, "sizes", sample)
        original = np.exp(generator.uniform(np.log(self.side), np.log(2048), 2)).round()
        if generator.random() < 0.5:
            original[:] = self.side
        crop = generator.integers(0, self.side // 2, 2) * (generator.random(2) < 0.2)
        return np.array([*original, *crop, self.side, self.side], np.float32)


def rows(known: int, config: ModelConfig, seed: int) -> list[Parameter]:
    """Return first rows of the known words for both encoders, divided by `_HASTE`, as they are learned."""
    widths = (config.text_encoder_1.width, config.text_encoder_2.width)
    spread = _KNOWN_SPREAD / _HASTE
    values = [spread * rng.normal((known, w), seed, "known words", k) for k, w in enumerate(widths)]
    return [Parameter(Tensor(value), name=f"rows_{k}") for k, value in enumerate(values, 1)]


def trained(model: SDXL) -> list[Parameter]:
    """Return what is trained of UNet and encoders: all but the token tables, which `fill_tables` fills."""
    parts = [*model.unet.get_parameters(), *model.conditioner.get_parameters()]
    return [p for p in parts if "token_embedding" not in p.name and p.dtype == ms.float32 and p.shape]


def fill_tables(model: SDXL, known: np.ndarray, learned: Sequence[Parameter], seed: int) -> None:
    """Write the learned rows at the ids `known`; every other word gets a short random row."""
    tables = (
        model.conditioner.embedders[0].transformer.text_model.embeddings.token_embedding.embedding_table,
        model.conditioner.embedders[1].model.token_embedding.embedding_table,
    )
    for encoder, (table, row) in enumerate(zip(tables, learned, strict=True)):
        values = _UNKNOWN_SPREAD * rng.normal(table.shape, seed, "unknown words", encoder)
        values[known] = _HASTE * row.asnumpy()
        table.set_data(Tensor(values))
    model.conditioner.embedders[1].model.logit_scale.set_data(Tensor(np.float32(np.log(100.0))))  # read by nobody
