"""One training step; `update` follows every `gradient_accumulation_steps` of them.

Two Cells, so that in graph mode the large one (forward and backward pass) is compiled once and the small one (Adam on
a few kilobytes) beside it, and so that ranks talk to each other once an update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from gm.config import LossConfig
from gm.diffusion import guidance, losses
from gm.errors import UserError
from gm.models.sdxl import SDXL

_PLAIN = LossConfig()
_INITIAL_SCALE = 2.0**16
FIRST_DISTANCE = 1e-6  # of Prodigy
_SCALE_WINDOW = 1000  # finite steps after which the loss scale doubles


class NegativePrompt(NamedTuple):
    """The negative word alone, as a prompt: ids_1 and ids_2 int32 [1, 77], pool_position int32 [1]."""

    ids_1: np.ndarray
    ids_2: np.ndarray
    pool_position: np.ndarray


class DiffusionLoss(nn.Cell):
    """The diffusion loss of a `loader.Batch` as a function of the rows [n, width 1] and [n, width 2].

    With a `negative` word it is that of the prediction that sampling with it as the negative prompt uses, so that both
    are learned at once (Dong et al., 2022, "DreamArtist"). Returns the loss times `scale`, a power of two that keeps
    float16 gradients from vanishing.
    """

    def __init__(self, model: SDXL, config: LossConfig, negative: NegativePrompt | None = None) -> None:
        super().__init__(auto_prefix=False)
        self.conditioner, self.unet = model.conditioner, model.unet
        self.huber, self.c = config.loss_type == "huber", config.huber_c
        self.negative = negative is not None
        if negative is not None:
            self.guidance = config.negative_guidance
            self.ids_1, self.ids_2, self.pool_position = (Tensor(each) for each in negative)

    def construct(self, clip_l: Tensor, clip_g: Tensor, scale: Tensor, batch: tuple) -> Tensor:
        x, noise, weight, timestep, ids_1, ids_2, pool_position, sizes = batch
        if self.negative:
            # Both in one pass, the negative first.
            x, timestep, sizes = ops.concat((x, x)), ops.concat((timestep, timestep)), ops.concat((sizes, sizes))
            ids_1 = ops.concat((self.ids_1.broadcast_to(ids_1.shape), ids_1))
            ids_2 = ops.concat((self.ids_2.broadcast_to(ids_2.shape), ids_2))
            pool_position = ops.concat((self.pool_position.broadcast_to(pool_position.shape), pool_position))
        context, vector = self.conditioner((ids_1, ids_2), (clip_l, clip_g), pool_position, sizes)
        epsilon = self.unet(x, timestep, context, vector)
        if self.negative:
            away, towards = ops.chunk(epsilon, 2, axis=0)
            epsilon = guidance.classifier_free_guidance(away, towards, self.guidance)
        error = epsilon - noise
        cost = losses.pseudo_huber(error, self.c) if self.huber else losses.squared_error(error)
        return (cost * weight).mean() * scale


class TrainState(nn.Cell):
    """Everything that training changes: rows, their gradients' sum, the optimizer's state, counters, the loss scale.

    Of Prodigy's, `starts` are the rows that training began with, `distance` is its estimate of how far from them the
    best rows are, `gain` and `slopes` what that is made of.
    """

    def __init__(self, rows: Sequence[np.ndarray], half: bool, optimizer: str = "adam") -> None:
        super().__init__(auto_prefix=False)
        self.rows = ParameterTuple([_state(f"rows_{i}", r) for i, r in enumerate(rows, 1)])
        self.sums = ParameterTuple([_state(f"sum_{i}", 0 * r) for i, r in enumerate(rows, 1)])
        self.means = ParameterTuple([_state(f"mean_{i}", 0 * r) for i, r in enumerate(rows, 1)])
        self.squares = ParameterTuple([_state(f"square_{i}", 0 * r) for i, r in enumerate(rows, 1)])
        if optimizer == "prodigy":
            self.starts = ParameterTuple([_state(f"start_{i}", r) for i, r in enumerate(rows, 1)])
            self.slopes = ParameterTuple([_state(f"slope_{i}", 0 * r) for i, r in enumerate(rows, 1)])
            self.distance, self.gain = _state("distance", FIRST_DISTANCE), _state("gain", 0.0)
        self.summed = _state("summed", 0.0)
        self.updates = _state("updates", 0.0)
        self.scale = _state("scale", _INITIAL_SCALE if half else 1.0)
        self.streak = _state("streak", 0.0)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return copies of the rows, float32 [n, width 1] and [n, width 2]."""
        return self.rows[0].asnumpy().copy(), self.rows[1].asnumpy().copy()

    def snapshot(self) -> dict[str, np.ndarray]:
        """Return copies of everything, float32, by name."""
        return {parameter.name: parameter.asnumpy().copy() for parameter in self.get_parameters()}

    def restore(self, values: Mapping[str, np.ndarray]) -> None:
        """Take over what `snapshot` gave, or a part of it; UserError if it is another run's."""
        own = {parameter.name: parameter for parameter in self.get_parameters()}
        for name, value in values.items():
            if name not in own or own[name].size != value.size:
                raise UserError(f"the state holds {name} {list(value.shape)}, which does not fit this run")
            own[name].set_data(Tensor(value.reshape(own[name].shape)))


class TrainStep(nn.Cell):
    """One forward and backward pass: adds the gradient of a batch's loss to the sums.

    Takes the fields of `Batch` one by one: a named tuple would be compiled in as a constant. Returns the loss and
    whether the gradient was finite: one that was not is left out of the sums, and in half precision halves the scale.
    """

    def __init__(
        self,
        model: SDXL,
        learned: TrainState,
        half: bool,
        config: LossConfig = _PLAIN,
        negative: NegativePrompt | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.loss, self.learned, self.half = DiffusionLoss(model, config, negative), learned, half

    def construct(
        self,
        x: Tensor,
        noise: Tensor,
        weight: Tensor,
        timestep: Tensor,
        ids_1: Tensor,
        ids_2: Tensor,
        pool_position: Tensor,
        sizes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        batch = (x, noise, weight, timestep, ids_1, ids_2, pool_position, sizes)
        learned, scale = self.learned, self.learned.scale * 1.0
        value_and_grad = ms.value_and_grad(self.loss, grad_position=(0, 1))
        scaled, (gradient_1, gradient_2) = value_and_grad(learned.rows[0], learned.rows[1], scale, batch)
        finite = ops.isfinite(scaled + gradient_1.sum() + gradient_2.sum())
        _add_if(finite, learned.sums[0], gradient_1 / scale)
        _add_if(finite, learned.sums[1], gradient_2 / scale)
        ops.assign_add(learned.summed, ops.cast(finite, ms.float32))
        if self.half:
            _adapt_scale(finite, learned.scale, learned.streak)
        return scaled / scale, finite


def _state(name: str, value: np.ndarray | float) -> Parameter:
    return Parameter(Tensor(np.asarray(value, np.float32)), name=name, requires_grad=name.startswith("rows"))


def _add_if(condition: Tensor, total: Parameter, term: Tensor) -> None:
    # A selection, not a product: 0 times infinity is not a number.
    ops.assign_add(total, ops.select(condition.broadcast_to(term.shape), term, ops.zeros_like(term)))


def _adapt_scale(finite: Tensor, scale: Parameter, streak: Parameter) -> None:
    """Halve the loss scale after an overflow, double it after a long streak without (Micikevicius et al., 2018)."""
    longer = ops.select(finite, streak + 1.0, ops.zeros_like(streak))
    full = longer >= _SCALE_WINDOW
    risen = ops.select(full, scale * 2.0, scale * 1.0)
    ops.assign(scale, ops.select(finite, risen, ops.maximum(scale * 0.5, 1.0)))
    ops.assign(streak, ops.select(full, ops.zeros_like(longer), longer))
