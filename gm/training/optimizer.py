"""What the summed gradients of some steps make of the rows."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.config import TrainingConfig
from gm.runtime import backend
from gm.training import lr_schedule
from gm.training.train_step import FIRST_DISTANCE, TrainState


class Update(nn.Cell):
    """Adam (Kingma and Ba, 2015) or Prodigy (Mishchenko and Defazio, 2024), both with bias correction.

    It takes a learning rate for each encoder, float32 scalars, and moves by the mean gradient of all steps and ranks
    since the last update, clipped by its global norm, with decoupled weight decay. Last, each row's norm is pulled
    towards that of `norms`, one an encoder. Where the config's learning rate is 0, the encoder's rows stay as they are
    and their gradient does not count. Returns the norm before clipping. If no step since the last update was finite,
    nothing changes.
    """

    def __init__(
        self, learned: TrainState, config: TrainingConfig, world: int, norms: tuple[float, ...] = (1.0, 1.0)
    ) -> None:
        super().__init__(auto_prefix=False)
        self.learned = learned
        self.average = backend.AllReduceMean(world)
        self.beta1, self.beta2, self.epsilon = config.adam_beta1, config.adam_beta2, config.adam_epsilon
        self.beta3 = config.adam_beta2**0.5
        self.decay, self.max_norm = config.weight_decay, config.max_grad_norm
        self.trained = [k for k, peak in enumerate(lr_schedule.peaks(config)) if peak > 0]
        self.prodigy = config.optimizer == "prodigy"
        self.pull, self.norms = config.preserve_embedding_norm, norms

    def construct(self, rate_1: Tensor, rate_2: Tensor) -> Tensor:
        learned = self.learned
        summed = self.average(learned.summed * 1.0)
        share = 1.0 / ops.maximum(summed, 1e-6)
        gradients = self.average(learned.sums[0] * 1.0) * share, self.average(learned.sums[1] * 1.0) * share
        total = 0.0 * share
        for which in self.trained:
            total = total + (gradients[which] * gradients[which]).sum()
        norm = ops.sqrt(total)
        if self.max_norm > 0:
            factor = ops.minimum(self.max_norm / (norm + 1e-6), 1.0)  # PyTorch's clip_grad_norm_ adds the same 1e-6
            gradients = gradients[0] * factor, gradients[1] * factor
        if_any = ops.cast(summed > 0, ms.float32)
        ops.assign_add(learned.updates, if_any)
        rates = rate_1, rate_2
        if self.prodigy:
            distance = learned.distance * 1.0
            farther = self._farther(gradients, rates, distance, if_any)
            for which in self.trained:
                self._move(which, distance * gradients[which], distance * rates[which], self.epsilon * farther, if_any)
            ops.assign(learned.distance, farther)
        else:
            small = self.epsilon * ops.sqrt(1.0 - ops.pow(self.beta2, self._count()))
            for which in self.trained:
                self._move(which, gradients[which], rates[which], small, if_any)
        ops.assign(learned.sums[0], ops.zeros_like(learned.sums[0]))
        ops.assign(learned.sums[1], ops.zeros_like(learned.sums[1]))
        ops.assign(learned.summed, ops.zeros_like(learned.summed))
        return norm

    def _count(self) -> Tensor:
        return ops.maximum(self.learned.updates, 1.0)

    def _correction(self) -> Tensor:
        """Return what makes up for moments that began at 0: (1 - β2^k)^½ / (1 - β1^k)."""
        return ops.sqrt(1.0 - ops.pow(self.beta2, self._count())) / (1.0 - ops.pow(self.beta1, self._count()))

    def _move(self, which: int, gradient: Tensor, rate: Tensor, small: Tensor, if_any: Tensor) -> None:
        """Move the rows of one encoder along their mean gradient, over the root of its mean square plus `small`."""
        learned, rate = self.learned, rate * if_any
        mean = learned.means[which] + if_any * (1.0 - self.beta1) * (gradient - learned.means[which])
        square = learned.squares[which] + if_any * (1.0 - self.beta2) * (gradient * gradient - learned.squares[which])
        rows = learned.rows[which] * (1.0 - rate * self.decay)
        rows = rows - rate * self._correction() * mean / (ops.sqrt(square) + small)
        if self.pull > 0:
            lengths = ops.sqrt((rows * rows).sum(axis=1, keepdims=True)) + 1e-12
            rows = rows * (1.0 + if_any * self.pull * (self.norms[which] / lengths - 1.0))
        ops.assign(learned.rows[which], rows)
        ops.assign(learned.means[which], mean)
        ops.assign(learned.squares[which], square)

    def _farther(self, gradients: tuple, rates: tuple, distance: Tensor, if_any: Tensor) -> Tensor:
        """Return Prodigy's next estimate of how far the best rows are from the first ones; it never falls.

        Their algorithm 4, over both encoders together: what going back would cost, over the sum of the slopes' sizes.
        """
        learned = self.learned
        gain, size = learned.gain * self.beta3, 0.0 * distance
        for which in self.trained:
            weight = distance / FIRST_DISTANCE * distance * rates[which] * self._correction()
            gain = gain + weight * (gradients[which] * (learned.starts[which] - learned.rows[which])).sum()
            slope = learned.slopes[which] * self.beta3 + weight * gradients[which]
            slope = ops.select((if_any > 0).broadcast_to(slope.shape), slope, learned.slopes[which] * 1.0)
            size = size + ops.abs(slope).sum()
            ops.assign(learned.slopes[which], slope)
        gain = ops.select(if_any > 0, gain, learned.gain * 1.0)
        ops.assign(learned.gain, gain)
        return ops.maximum(distance, ops.select(size > 0, gain / ops.maximum(size, 1e-38), distance))
