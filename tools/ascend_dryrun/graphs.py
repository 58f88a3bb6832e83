"""The graphs that training and sampling compile, each as a Cell with inputs of the right shapes and no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from gm.config import Config
from gm.models import stable_diffusion
from gm.models.spatial_transformer import SpatialTransformer
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime.backend import Backend
from gm.sampling.cfg_denoiser import ContextProjection, GuidedUNet, guider_name
from gm.sampling.conditioning import PromptConditioner
from gm.sampling.vae_decode import DecodeLevels
from gm.training import context_prompts, optimizer
from gm.training.regularization import ContextLoss
from gm.training.train_state import TrainState
from gm.training.train_step import NegativePrompt, TrainStep


@dataclass(frozen=True)
class Graph:
    """A Cell, and the inputs that it is compiled for."""

    cell: nn.Cell
    inputs: tuple[Any, ...]


class _Encode(nn.Cell):
    """The VAE's encoder, which training runs once for each image."""

    def __init__(self, model: StableDiffusion) -> None:
        super().__init__(auto_prefix=False)
        self.vae = model.first_stage_model

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.vae.encode(images)


class Graphs:
    """The graphs of one config in one precision; `names` returns which there are.

    Prompts have `num_chunks` chunks.
    """

    def __init__(self, config: Config, backend: Backend, num_chunks: int = 1) -> None:
        self.config = config
        self.backend = backend
        self.num_chunks = num_chunks
        self.model = stable_diffusion.build(config.model, backend.dtype)
        if config.training.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        self.num_vectors = config.concept.num_vectors
        self.latent_size = config.model.resolution // config.model.vae.downsample_factor
        self.widths = {name: encoder.width for name, encoder in config.model.text_encoders.items()}

    def train_step(self) -> Graph:
        config, n = self.config, self.config.training.train_batch_size
        state = self._train_state()
        negative = None
        if any(concept.negative for concept in config.concepts):
            ids = tuple(np.zeros((1, *self._prompt_shape), np.int32) for _ in self.widths)
            negative = NegativePrompt(np.zeros(1, np.int32), ids)
        context_loss = None
        if config.loss.context_loss_weight:
            context_loss = ContextLoss(self.model, context_prompts.encoders_of(config))
        cell = TrainStep(self.model, state, self.backend.dtype == ms.float16, config.loss, negative, context_loss)
        latents = self._latents(n)
        loss_weight = _zeros((n, 1, self.latent_size, self.latent_size))
        position = _zeros((n,), ms.int32)
        inputs = (latents, latents, loss_weight, _zeros((n,)), self._sizes(n), position, *self._ids(n))
        return Graph(cell, (*inputs, *self._context(n)))

    def _context(self, n: int) -> tuple[Tensor, ...]:
        """Return the inputs of the context loss: weights, then ids and states of each of its text encoders."""
        config, length = self.config, self.config.model.context_length
        inputs: tuple[Tensor, ...] = ()
        if config.loss.context_loss_weight:
            inputs = (_zeros((n, length)),)
            for encoder in context_prompts.encoders_of(config):
                inputs = (*inputs, _zeros((n, length), ms.int32), _zeros((n, length, self.widths[encoder])))
        return inputs

    def update(self, world_size: int = 1) -> Graph:
        training = self.config.training
        norms = tuple(1.0 for _ in self.widths) if training.preserve_embedding_norm else ()
        cell = optimizer.create_optimizer(self._train_state(), training, world_size, norms)
        return Graph(cell, tuple(_zeros(()) for _ in self.widths))

    def update_of_8_ranks(self) -> Graph:
        return self.update(world_size=8)

    def conditioner(self) -> Graph:
        n = self.config.sampling.batch_size
        vectors = tuple(_zeros((self.num_vectors, width)) for width in self.widths.values())
        ids = tuple(_zeros((n, self._tokens), ms.int32) for _ in self.widths)  # sampling encodes chunk by chunk
        return Graph(PromptConditioner(self.model), (_zeros((n,), ms.int32), self._sizes(n), *ids, *vectors))

    def project_context(self) -> Graph:
        shape = (self._guided_batch, self.num_chunks * self._tokens, self.config.model.unet.context_dim)
        return Graph(ContextProjection(self.model), (_zeros(shape, self.backend.dtype),))

    def denoiser(self) -> Graph:
        n, both = self.config.sampling.batch_size, self._guided_batch
        shapes = _context_kv_shapes(self.model, both, self.num_chunks * self._tokens)
        context_kv = tuple(_zeros(shape, self.backend.dtype) for shape in shapes)
        model = self.config.model
        y = _zeros((both, model.unet.adm_in_channels)) if model.has_class_embedding else None
        sigma, timestep, scale, rescale = _zeros(()), _zeros((1,)), _zeros(()), _zeros(())
        inputs = (self._latents(n), sigma, timestep, scale, rescale, y, *context_kv)
        return Graph(GuidedUNet(self.model, self._guider), inputs)

    def vae_decode(self) -> Graph:
        return Graph(DecodeLevels(self.model), (self._latents(self.config.sampling.batch_size),))

    def vae_encode(self) -> Graph:
        side = self.config.model.resolution
        return Graph(_Encode(self.model), (_zeros((1, 3, side, side)),))

    @property
    def _guider(self) -> str:
        return guider_name(self.config.sampling, self.config.sampling.guidance_scale)

    @property
    def _guided_batch(self) -> int:
        """The images of a sampling batch, twice with guidance."""
        return self.config.sampling.batch_size * (1 if self._guider == "none" else 2)

    @property
    def _tokens(self) -> int:
        return next(iter(self.config.model.text_encoders.values())).context_length

    @property
    def _prompt_shape(self) -> tuple[int, ...]:
        return (self._tokens,) if self.num_chunks == 1 else (self.num_chunks, self._tokens)

    def _train_state(self) -> TrainState:
        vectors = {name: np.zeros((self.num_vectors, width), np.float32) for name, width in self.widths.items()}
        half = self.backend.dtype == ms.float16
        return optimizer.create_train_state(vectors, self.config.training.optimizer, half)

    def _latents(self, n: int) -> Tensor:
        return _zeros((n, self.config.model.vae.latent_channels, self.latent_size, self.latent_size))

    def _sizes(self, n: int) -> Tensor:
        return _zeros((n, self.config.model.num_size_values))

    def _ids(self, n: int) -> tuple[Tensor, ...]:
        return tuple(_zeros((n, *self._prompt_shape), ms.int32) for _ in self.widths)


GRAPHS: dict[str, Callable[[Graphs], Graph]] = {
    "train_step": Graphs.train_step,
    "update": Graphs.update,
    "update_of_8_ranks": Graphs.update_of_8_ranks,
    "conditioner": Graphs.conditioner,
    "project_context": Graphs.project_context,
    "denoiser": Graphs.denoiser,
    "vae_decode": Graphs.vae_decode,
    "vae_encode": Graphs.vae_encode,
}
_OF_A_REFINER = ("conditioner", "project_context", "denoiser")  # it is not trained, and uses the base model's VAE


def names(config: Config) -> tuple[str, ...]:
    """Return the names of the graphs of `config`."""
    return _OF_A_REFINER if config.model.is_refiner else tuple(GRAPHS)


def _zeros(shape: tuple[int, ...], dtype: Any = ms.float32) -> Tensor:
    return Tensor(np.zeros(shape), dtype)


def _context_kv_shapes(model: StableDiffusion, n: int, tokens: int) -> list[tuple[int, int, int]]:
    """Return the shapes of what `UNet.project_context` returns: key and value of each cross-attention."""
    unet = model.unet
    blocks = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
    widths = [
        block.attn2.to_k.weight.shape[0]
        for layers in blocks
        for layer in layers
        if isinstance(layer, SpatialTransformer)
        for block in layer.transformer_blocks
    ]
    return [(n, tokens, width) for width in widths for _ in range(2)]
