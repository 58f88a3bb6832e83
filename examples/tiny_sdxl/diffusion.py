"""Second part of the training: UNet and text encoders together, on latents of scenes and their captions.

The embeddings of the captions' tokens are trained as separate vectors, as in textual inversion, and written into the
token tables at the end. The other token embeddings are not trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn

from examples.tiny_sdxl import captions, world
from gm.config.model import ModelConfig
from gm.diffusion import denoiser, schedule
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime import rng
from gm.text.tokenizer import END, PADDING_IDS, START, VOCAB_SIZE, Tokenizer, pool_positions

_UNUSED_STD = 0.05  # of the embeddings of tokens that no caption has, so that they have little effect
_USED_STD = 1.0
_EMBEDDING_LR_SCALE = 30.0  # learning rate of embeddings relative to weights: most tokens are rare


class Loss(nn.Cell):
    """Diffusion loss with all weights trainable; `has_caption` [N, 1] is 0 for samples without a caption."""

    def __init__(self, model: StableDiffusion, embeddings: Sequence[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.conditioner = model.conditioner
        self.unet = model.unet
        self.embeddings = ParameterTuple(embeddings)
        self.zero_unconditional = model.config.zero_unconditional  # else a sample without a caption has the text ""
        pooled = model.config.text_encoder_2.width
        self.is_pooled = Tensor((np.arange(model.config.unet.adm_in_channels) < pooled).astype(np.float32))

    def construct(
        self,
        x: Tensor,
        noise: Tensor,
        timestep: Tensor,
        pool_position: Tensor,
        sizes: Tensor,
        has_caption: Tensor,
        *ids: Tensor,
    ) -> Tensor:
        vectors: tuple[Tensor, ...] = ()
        for embedding in self.embeddings:
            vectors = (*vectors, _EMBEDDING_LR_SCALE * embedding)
        context, vector = self.conditioner(ids, vectors, pool_position, sizes)
        if self.zero_unconditional:
            # SDXL's unconditional input is zero in the context and in the pooled part of y.
            context = context * has_caption.expand_dims(-1)
            vector = vector * (1.0 - self.is_pooled * (1.0 - has_caption))
        return denoiser.loss(self.unet(x, timestep, context, vector), noise)


class Batches:
    """Batches by sample numbers: scenes repeat, captions and noise are new for every sample."""

    def __init__(self, latents: np.ndarray, seed: int, config: ModelConfig) -> None:
        self.latents = latents
        self.seed = seed
        self.side = config.resolution
        self.encoders = tuple(config.text_encoders)
        self.tokenizer = Tokenizer(config.context_length)
        self.sigmas = schedule.training_sigmas(config.schedule)
        known = {START, END, 0}.union(*(self.tokenizer.encode(text) for text in captions.every_word()))
        self.known = np.array(sorted(known))
        self.vector_id = np.arange(VOCAB_SIZE, dtype=np.int32)
        self.vector_id[self.known] = VOCAB_SIZE + np.arange(len(known))

    def batch(self, samples: range) -> tuple[Tensor, ...]:
        """Return the inputs of `Loss`."""
        scenes = [sample % len(self.latents) for sample in samples]
        scene_captions = [
            captions.caption(world.scene(self.seed, k), self.seed, n) for k, n in zip(scenes, samples, strict=True)
        ]
        texts = [text or "" for text in scene_captions]
        timestep = np.array([self._timestep(n) for n in samples])
        noise = np.stack([rng.normal(self.latents.shape[1:], self.seed, "noise", n) for n in samples])
        sigma = self.sigmas[timestep].astype(np.float32)[:, None, None, None]
        ids = [self.tokenizer(texts, padding=PADDING_IDS[name]) for name in self.encoders]
        return (
            Tensor(denoiser.scale_model_input(denoiser.add_noise(self.latents[scenes], noise, sigma), sigma)),
            Tensor(noise),
            Tensor(timestep.astype(np.float32)),
            Tensor(pool_positions(ids[-1], "end_of_text")),
            Tensor(np.stack([self._sizes(n) for n in samples])),
            Tensor(np.array([[text is not None] for text in scene_captions], np.float32)),
            *(Tensor(self.vector_id[each]) for each in ids),
        )

    def _timestep(self, sample: int) -> int:
        """Return a timestep, high ones more often: they determine the layout, but have small errors."""
        return int(len(self.sigmas) * rng.generator(self.seed, "timestep", sample).random() ** 0.5)

    def _sizes(self, sample: int) -> np.ndarray:
        """Return a random size conditioning; scenes do not depend on it, and the model learns that."""
        generator = rng.generator(self.seed, "sizes", sample)
        original = np.exp(generator.uniform(np.log(self.side), np.log(2048), 2)).round()
        if generator.random() < 0.5:
            original[:] = self.side
        crop = generator.integers(0, self.side // 2, 2) * (generator.random(2) < 0.2)
        return np.array([*original, *crop, self.side, self.side], np.float32)


def embedding_parameters(known: int, config: ModelConfig, seed: int) -> list[Parameter]:
    """Return initial embeddings of the captions' tokens for each encoder, divided by `_EMBEDDING_LR_SCALE`."""
    widths = [encoder.width for encoder in config.text_encoders.values()]
    std = _USED_STD / _EMBEDDING_LR_SCALE
    values = [std * rng.normal((known, w), seed, "known words", k) for k, w in enumerate(widths)]
    return [Parameter(Tensor(value), name=f"embedding_{k}") for k, value in enumerate(values, 1)]


def trainable_parameters(model: StableDiffusion) -> list[Parameter]:
    """Return the parameters of UNet and encoders without the token tables, which `fill_token_tables` fills."""
    parts = [*model.unet.get_parameters(), *model.conditioner.get_parameters()]
    return [p for p in parts if "token_embedding" not in p.name and p.dtype == ms.float32 and p.shape]


def fill_token_tables(model: StableDiffusion, known: np.ndarray, trained: Sequence[Parameter], seed: int) -> None:
    """Write the trained embeddings at the ids `known`; every other token gets a small random embedding."""
    tables = model.conditioner.token_embeddings().values()
    for encoder, (table, vectors) in enumerate(zip([each.embedding_table for each in tables], trained, strict=True)):
        values = _UNUSED_STD * rng.normal(table.shape, seed, "unknown words", encoder)
        values[known] = _EMBEDDING_LR_SCALE * vectors.asnumpy()
        table.set_data(Tensor(values))
    for p in model.conditioner.get_parameters():
        if p.name.endswith("logit_scale"):
            p.set_data(Tensor(np.float32(np.log(100.0))))  # published, but unused
