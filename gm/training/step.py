"""One training step, and the update that follows every `gradient_accumulation_steps` of them.

Two Cells, so that in graph mode the large one (forward and backward pass) is compiled once and the small one (Adam on
a few kilobytes) beside it, and so that ranks talk to each other once an update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from gm import backend
from gm.config import LossConfig, TrainingConfig
from gm.diffusion import losses
from gm.errors import UserError
from gm.sdxl import SDXL
from gm.training import schedules

_PLAIN = LossConfig()
_INITIAL_SCALE = 2.0**16
_SCALE_WINDOW = 1000  # finite steps after which the loss scale doubles


class Loss(nn.Cell):
    """The diffusion loss of a `feed.Batch` as a function of the rows [n, width 1] and [n, width 2].

    Returns the loss times `scale`, a power of two that keeps float16 gradients from vanishing.
    """

    def __init__(self, model: SDXL, config: LossConfig) -> None:
        super().__init__(auto_prefix=False)
        self.conditioner, self.unet = model.conditioner, model.unet
        self.huber, self.c = config.loss_type == "huber", config.huber_c

    def construct(self, rows_1: Tensor, rows_2: Tensor, scale: Tensor, batch: tuple) -> Tensor:
        x, noise, weight, timestep, ids_1, ids_2, pool_position, sizes = batch
        context, vector = self.conditioner(ids_1, ids_2, pool_position, rows_1, rows_2, sizes)
        error = self.unet(x, timestep, context, vector) - noise
        cost = losses.pseudo_huber(error, self.c) if self.huber else losses.squared(error)
        return (cost * weight).mean() * scale


class Learned(nn.Cell):
    """Everything that training changes: the rows, their gradient's sum, Adam's moments, counters, the loss scale."""

    def __init__(self, rows: Sequence[np.ndarray], half: bool) -> None:
        super().__init__(auto_prefix=False)
        self.rows = ParameterTuple([_state(f"rows_{i}", r) for i, r in enumerate(rows, 1)])
        self.sums = ParameterTuple([_state(f"sum_{i}", 0 * r) for i, r in enumerate(rows, 1)])
        self.means = ParameterTuple([_state(f"mean_{i}", 0 * r) for i, r in enumerate(rows, 1)])
        self.squares = ParameterTuple([_state(f"square_{i}", 0 * r) for i, r in enumerate(rows, 1)])
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


class Step(nn.Cell):
    """One forward and backward pass: adds the gradient of a batch's loss to the sums.

    Takes the fields of `feed.Batch`, one by one: a named tuple would be compiled in as a constant. Returns the loss and
    whether the gradient was finite: one that was not is left out of the sums, and in half precision halves the scale.
    """

    def __init__(self, model: SDXL, learned: Learned, half: bool, config: LossConfig = _PLAIN) -> None:
        super().__init__(auto_prefix=False)
        self.loss, self.learned, self.half = Loss(model, config), learned, half

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


class Update(nn.Cell):
    """Adam (Kingma and Ba, 2015) with bias correction and decoupled weight decay, on the mean of the summed gradients.

    The gradient is averaged over ranks, then clipped by its global norm; last, each row's norm is pulled towards that
    of `norms`, one an encoder. Takes a learning rate for each encoder, float32 scalars; where the config has 0, the
    encoder's rows stay as they are and their gradient does not count. Returns the norm before clipping. If no step
    since the last update was finite, nothing changes.
    """

    def __init__(
        self, learned: Learned, config: TrainingConfig, world: int, norms: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        super().__init__(auto_prefix=False)
        self.learned = learned
        self.average = backend.MeanOverRanks(world)
        self.beta1, self.beta2, self.epsilon = config.adam_beta1, config.adam_beta2, config.adam_epsilon
        self.decay, self.max_norm = config.weight_decay, config.max_grad_norm
        self.trained = tuple(peak > 0 for peak in schedules.peaks(config))
        self.pull, self.norms = config.norm_pull, norms

    def construct(self, rate_1: Tensor, rate_2: Tensor) -> Tensor:
        learned = self.learned
        summed = self.average(learned.summed * 1.0)
        share = 1.0 / ops.maximum(summed, 1e-6)
        gradient_1 = self.average(learned.sums[0] * 1.0) * share
        gradient_2 = self.average(learned.sums[1] * 1.0) * share
        total = 0.0 * share
        if self.trained[0]:
            total = total + (gradient_1 * gradient_1).sum()
        if self.trained[1]:
            total = total + (gradient_2 * gradient_2).sum()
        norm = ops.sqrt(total)
        if self.max_norm > 0:
            factor = ops.minimum(self.max_norm / (norm + 1e-6), 1.0)  # PyTorch's clip_grad_norm_ adds the same 1e-6
            gradient_1, gradient_2 = gradient_1 * factor, gradient_2 * factor
        if_any = ops.cast(summed > 0, ms.float32)
        ops.assign_add(learned.updates, if_any)
        if self.trained[0]:
            self._adam(0, gradient_1, rate_1 * if_any, if_any)
        if self.trained[1]:
            self._adam(1, gradient_2, rate_2 * if_any, if_any)
        ops.assign(learned.sums[0], ops.zeros_like(learned.sums[0]))
        ops.assign(learned.sums[1], ops.zeros_like(learned.sums[1]))
        ops.assign(learned.summed, ops.zeros_like(learned.summed))
        return norm

    def _adam(self, which: int, gradient: Tensor, rate: Tensor, if_any: Tensor) -> None:
        learned = self.learned
        updates = ops.maximum(learned.updates, 1.0)
        mean = learned.means[which] + if_any * (1.0 - self.beta1) * (gradient - learned.means[which])
        square = learned.squares[which] + if_any * (1.0 - self.beta2) * (gradient * gradient - learned.squares[which])
        unbiased_mean = mean / (1.0 - ops.pow(self.beta1, updates))
        unbiased_square = square / (1.0 - ops.pow(self.beta2, updates))
        rows = learned.rows[which] * (1.0 - rate * self.decay)
        rows = rows - rate * unbiased_mean / (ops.sqrt(unbiased_square) + self.epsilon)
        if self.pull > 0:
            lengths = ops.sqrt((rows * rows).sum(axis=1, keepdims=True)) + 1e-12
            rows = rows * (1.0 + if_any * self.pull * (self.norms[which] / lengths - 1.0))
        ops.assign(learned.rows[which], rows)
        ops.assign(learned.means[which], mean)
        ops.assign(learned.squares[which], square)


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
