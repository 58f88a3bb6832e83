"""Training step: forward and backward pass of one batch. `optimizer` follows every `gradient_accumulation_steps`.

Step and optimizer are two Cells, so that in graph mode the large graph is compiled once and the small one (a few
kilobytes of parameters) beside it, and so that ranks communicate once per update.
"""

from __future__ import annotations

from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gm.config import LossConfig
from gm.diffusion import guidance, losses
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime import float_status
from gm.training.regularization import ContextLoss, InitialDistance
from gm.training.train_state import TrainState

_NUM_SHARED = 6  # inputs of a step that are no tuples
_SCALE_WINDOW = 1000  # finite steps after which the loss scale doubles


class NegativePrompt(NamedTuple):
    """The prompt of a negative concept: pool_position int32 [1] and the ids of each text encoder.

    The ids are int32 [1, 77] or, if prompts of the run have K chunks, [1, K, 77].
    """

    pool_position: np.ndarray
    ids: tuple[np.ndarray, ...]


class Batch(NamedTuple):
    """The inputs of one step: B noised images with prompts and size conditioning."""

    x: Tensor  # scaled UNet input, float32 [B, z, h, w]
    target: Tensor  # target of the UNet's prediction, noise or velocity, float32 [B, z, h, w]
    loss_weight: Tensor  # float32 [B, 1, h, w]
    timesteps: Tensor  # float32 [B]
    sizes: Tensor  # size conditioning, float32 [B, 6]
    pool_position: Tensor  # int32 [B]
    ids: tuple[Tensor, ...]  # of each text encoder, int32 [B, 77], for prompts of K chunks [B, K, 77]
    context: tuple[Tensor, ...] = ()  # of the context loss (gm.training.context_prompts)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The fields as the arguments of `TrainStep`: a graph takes tensors, not tuples of them."""
        return (*self[:_NUM_SHARED], *self.ids, *self.context)


class DiffusionLoss(nn.Cell):
    """Diffusion loss of a batch (the `inputs` of a `Batch`) as a function of the embedding vectors of each encoder.

    With a `negative` prompt it is the loss of the prediction with classifier-free guidance against that prompt, so that
    both concepts are trained together (Dong et al., 2022, "DreamArtist").
    """

    def __init__(self, model: StableDiffusion, config: LossConfig, negative: NegativePrompt | None = None) -> None:
        super().__init__(auto_prefix=False)
        self.conditioner = model.conditioner
        self.unet = model.unet
        self.use_huber = config.loss_type == "huber"
        self.huber_c = config.huber_c
        self.has_negative = negative is not None
        if negative is not None:
            self.guidance_scale = config.negative_guidance
            self.negative_pool_position = Tensor(negative.pool_position)
            self.negative_ids = tuple(Tensor(ids) for ids in negative.ids)

    def construct(self, vectors: tuple[Tensor, ...], batch: tuple[Tensor, ...]) -> Tensor:
        x, target, loss_weight, timesteps, sizes, pool_position = batch[:_NUM_SHARED]
        ids = batch[_NUM_SHARED:]
        if self.has_negative:
            # One pass of twice the batch, the negative prompt first.
            x = ops.concat((x, x))
            timesteps = ops.concat((timesteps, timesteps))
            sizes = ops.concat((sizes, sizes))
            both_ids: tuple[Tensor, ...] = ()
            for k in range(len(ids)):
                negative = self.negative_ids[k].broadcast_to(ids[k].shape)
                both_ids = (*both_ids, ops.concat((negative, ids[k])))
            ids = both_ids
            negative_position = self.negative_pool_position.broadcast_to(pool_position.shape)
            pool_position = ops.concat((negative_position, pool_position))
        context, y = self.conditioner(ids, vectors, pool_position, sizes)
        prediction = self.unet(x, timesteps, context, y)
        if self.has_negative:
            uncond, cond = ops.chunk(prediction, 2, axis=0)
            prediction = guidance.classifier_free_guidance(uncond, cond, self.guidance_scale)
        error = prediction - target
        loss = losses.pseudo_huber(error, self.huber_c) if self.use_huber else losses.squared_error(error)
        return (loss * loss_weight).mean()


class TrainStep(nn.Cell):
    """Forward and backward pass of one batch: adds the gradient of the loss to `state.gradient_sums`.

    Takes the `inputs` of a `Batch`. Returns the loss and whether loss and gradient are finite: a gradient that is not
    is left out of the sums, and with `half` the loss scale is halved. On cards that saturate, a gradient counts as
    finite if nothing overflowed in the backward pass. With a `context_loss` its value is the third result. It and the
    distance from the initial vectors, with their weights in `config`, are part of the loss.
    """

    def __init__(
        self,
        model: StableDiffusion,
        state: TrainState,
        half: bool = False,
        config: LossConfig | None = None,
        negative: NegativePrompt | None = None,
        context_loss: ContextLoss | None = None,
        initial_distance: InitialDistance | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        config = config or LossConfig()
        self.loss = DiffusionLoss(model, config, negative)
        self.has_context_loss = context_loss is not None
        if context_loss is not None:
            self.context_loss = context_loss
            self.context_weight = config.context_loss_weight
        self.initial_distance = initial_distance
        self.distance_weight = config.initializer_reg_weight
        self.num_inputs = _NUM_SHARED + len(state.encoders)  # of the diffusion loss
        self.state = state
        self.half = half
        self.saturates = half and float_status.saturates()
        self.encoder_indices = tuple(range(len(state.encoders)))
        self.trainable = state.vectors

    def scaled_loss(self, scale: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the loss times `scale`, a power of two that keeps float16 gradients from underflowing."""
        return self._scaled(self.loss(self.state.vectors, batch), scale)

    def scaled_loss_and_context(self, scale: Tensor, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return the loss with the context loss, times `scale`, and the context loss alone."""
        context = self.context_loss(self.state.vectors, batch[self.num_inputs :])
        loss = self.loss(self.state.vectors, batch[: self.num_inputs]) + self.context_weight * context
        return self._scaled(loss, scale), context

    def _scaled(self, loss: Tensor, scale: Tensor) -> Tensor:
        if self.initial_distance is not None:
            loss = loss + self.distance_weight * self.initial_distance(self.state.vectors)
        if self.saturates:
            scale = float_status.clear_after(loss, scale)  # which the backward pass begins with
        return loss * scale

    def construct(self, *batch: Tensor) -> tuple[Tensor, ...]:
        state = self.state
        scale = state.loss_scale * 1.0
        context: tuple[Tensor, ...] = ()
        if not self.has_context_loss:
            scaled_loss, gradients = ms.value_and_grad(self.scaled_loss, None, self.trainable)(scale, batch)
        else:
            function = ms.value_and_grad(self.scaled_loss_and_context, None, self.trainable, has_aux=True)
            values, gradients = function(scale, batch)
            scaled_loss = values[0]
            context = (values[1],)
        total = scaled_loss
        for k in self.encoder_indices:
            total = total + gradients[k].sum()
        finite = ops.isfinite(total)
        if self.saturates:
            finite = ops.logical_and(finite, float_status.finite_since_clear(gradients))
        for k in self.encoder_indices:
            _add_if(finite, state.gradient_sums[k], gradients[k] / scale)
        ops.assign_add(state.num_summed, ops.cast(finite, ms.float32))
        if self.half:
            _adapt_loss_scale(finite, state.loss_scale, state.finite_streak)
        return (scaled_loss / scale, finite, *context)


def _add_if(condition: Tensor, total: Parameter, term: Tensor) -> None:
    # A selection, not a product: 0 times infinity is not a number.
    ops.assign_add(total, ops.select(condition.broadcast_to(term.shape), term, ops.zeros_like(term)))


def _adapt_loss_scale(finite: Tensor, loss_scale: Parameter, finite_streak: Parameter) -> None:
    """Halve the loss scale after an overflow, double it after a long finite streak (Micikevicius et al., 2018)."""
    streak = ops.select(finite, finite_streak + 1.0, ops.zeros_like(finite_streak))
    full = streak >= _SCALE_WINDOW
    raised = ops.select(full, loss_scale * 2.0, loss_scale * 1.0)
    ops.assign(loss_scale, ops.select(finite, raised, ops.maximum(loss_scale * 0.5, 1.0)))
    ops.assign(finite_streak, ops.select(full, ops.zeros_like(streak), streak))
