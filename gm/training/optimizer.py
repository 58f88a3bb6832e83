"""Optimizers of the embedding vectors: AdamW, Prodigy, spherical SGD. An update uses the mean gradient of its steps."""

from __future__ import annotations

from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gm.config import TrainingConfig
from gm.runtime import backend
from gm.training import lr_schedule
from gm.training.train_state import TrainState

_CLIP_EPSILON = 1e-6  # as in PyTorch's clip_grad_norm_
_SPHERE_EPSILON = 1e-8  # beside the norm of a gradient, as in SphericalSGD of the paper's code


class Optimizer(nn.Cell):
    """Base of the optimizers: averages and clips the gradients, calls `apply`, preserves norms, resets the sums.

    The gradient is the mean over all steps and ranks since the last update, clipped by its global norm. Encoders whose
    peak learning rate is 0 stay as they are and do not count in the norm. If no step since the last update was finite,
    nothing changes. A subclass defines `initial_state` and `apply`, and is listed in `OPTIMIZERS`.

    Takes the learning rate of each encoder, float32 scalars; returns the gradient norm before clipping.
    `token_norms` are the norms that `preserve_embedding_norm` moves the vectors to, one per encoder.
    """

    def __init__(
        self, state: TrainState, config: TrainingConfig, world: int = 1, token_norms: tuple[float, ...] = ()
    ) -> None:
        super().__init__(auto_prefix=False)
        self.state = state
        self.all_reduce_mean = backend.AllReduceMean(world)
        self.weight_decay = config.weight_decay
        self.max_grad_norm = config.max_grad_norm
        self.norm_pull = config.preserve_embedding_norm
        self.token_norms = token_norms
        peaks = lr_schedule.peak_learning_rates(config, state.encoders)
        self.encoder_indices = tuple(range(len(state.encoders)))
        self.trained = [k for k in self.encoder_indices if peaks[k] > 0]

    @staticmethod
    def initial_state(vectors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray] | float]:
        """Return the optimizer's own entries of `TrainState`: arrays by text encoder, or scalars."""
        raise NotImplementedError

    def apply(self, gradients: tuple[Tensor, ...], learning_rates: tuple[Tensor, ...], applied: Tensor) -> None:
        """Update `state.vectors` of the `trained` encoders; `applied` is 1, or 0 if nothing may change."""
        raise NotImplementedError

    def construct(self, *learning_rates: Tensor) -> Tensor:
        state = self.state
        num_summed = self.all_reduce_mean(state.num_summed * 1.0)
        share = 1.0 / ops.maximum(num_summed, 1e-6)
        gradients: tuple[Tensor, ...] = ()
        for k in self.encoder_indices:
            gradients = (*gradients, self.all_reduce_mean(state.gradient_sums[k] * 1.0) * share)
        squares = 0.0 * share
        for k in self.trained:
            squares = squares + (gradients[k] * gradients[k]).sum()
        norm = ops.sqrt(squares)
        if self.max_grad_norm > 0:
            factor = ops.minimum(self.max_grad_norm / (norm + _CLIP_EPSILON), 1.0)
            clipped: tuple[Tensor, ...] = ()
            for k in self.encoder_indices:
                clipped = (*clipped, gradients[k] * factor)
            gradients = clipped
        applied = ops.cast(num_summed > 0, ms.float32)
        ops.assign_add(state.updates, applied)
        self.apply(gradients, learning_rates, applied)
        for k in self.encoder_indices:
            ops.assign(state.gradient_sums[k], ops.zeros_like(state.gradient_sums[k]))
        ops.assign(state.num_summed, ops.zeros_like(state.num_summed))
        return norm

    def preserve_norm(self, k: int, vectors: Tensor, applied: Tensor) -> Tensor:
        """Return the vectors of encoder `k` with each norm moved towards that of the tokens."""
        if self.norm_pull > 0:
            norms = ops.sqrt((vectors * vectors).sum(axis=1, keepdims=True)) + 1e-12
            vectors = vectors * (1.0 + applied * self.norm_pull * (self.token_norms[k] / norms - 1.0))
        return vectors


class AdamW(Optimizer):
    """Adam (Kingma & Ba, 2015, algorithm 1) with decoupled weight decay (Loshchilov & Hutter, 2019, algorithm 2).

    m and v are the first and second moment estimates; t is the number of updates.
    """

    def __init__(
        self, state: TrainState, config: TrainingConfig, world: int = 1, token_norms: tuple[float, ...] = ()
    ) -> None:
        super().__init__(state, config, world, token_norms)
        self.beta1 = config.adam_beta1
        self.beta2 = config.adam_beta2
        self.epsilon = config.adam_epsilon

    @staticmethod
    def initial_state(vectors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray] | float]:
        return {"m": _zeros(vectors), "v": _zeros(vectors)}

    def apply(self, gradients: tuple[Tensor, ...], learning_rates: tuple[Tensor, ...], applied: Tensor) -> None:
        epsilon = self.epsilon * ops.sqrt(1.0 - ops.pow(self.beta2, self.t()))
        for k in self.trained:
            self.adam_step(k, gradients[k], learning_rates[k], epsilon, applied)

    def adam_step(self, k: int, g: Tensor, lr: Tensor, epsilon: Tensor, applied: Tensor) -> None:
        """Update moments and vectors of encoder `k`."""
        state = self.state
        lr = lr * applied
        m = state.m[k] + applied * (1.0 - self.beta1) * (g - state.m[k])
        v = state.v[k] + applied * (1.0 - self.beta2) * (g * g - state.v[k])
        vectors = state.vectors[k] * (1.0 - lr * self.weight_decay)
        vectors = vectors - lr * self.bias_correction() * m / (ops.sqrt(v) + epsilon)
        ops.assign(state.vectors[k], self.preserve_norm(k, vectors, applied))
        ops.assign(state.m[k], m)
        ops.assign(state.v[k], v)

    def t(self) -> Tensor:
        return ops.maximum(self.state.updates, 1.0)

    def bias_correction(self) -> Tensor:
        """Return √(1 - β2^t) / (1 - β1^t), for moments that are 0 at first (Kingma & Ba, 2015, section 2)."""
        return ops.sqrt(1.0 - ops.pow(self.beta2, self.t())) / (1.0 - ops.pow(self.beta1, self.t()))


class Prodigy(AdamW):
    """Prodigy, Adam version (Mishchenko & Defazio, 2024, algorithm 4), over all encoders together.

    It estimates d, the distance from the initial vectors x0 to the solution, and multiplies the learning rate by it.
    d is the maximum of r / ‖s‖₁ so far, where r and s are exponential averages with √β2 of ⟨g, x0 - x⟩ and of g.
    """

    d0 = 1e-6  # the first estimate

    def __init__(
        self, state: TrainState, config: TrainingConfig, world: int = 1, token_norms: tuple[float, ...] = ()
    ) -> None:
        super().__init__(state, config, world, token_norms)
        self.beta3 = config.adam_beta2**0.5

    @staticmethod
    def initial_state(vectors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray] | float]:
        moments = AdamW.initial_state(vectors)
        return {**moments, "x0": dict(vectors), "s": _zeros(vectors), "d": Prodigy.d0, "r": 0.0}

    def apply(self, gradients: tuple[Tensor, ...], learning_rates: tuple[Tensor, ...], applied: Tensor) -> None:
        d = self.state.d * 1.0
        d_next = self.estimate_distance(gradients, learning_rates, d, applied)
        for k in self.trained:
            self.adam_step(k, d * gradients[k], d * learning_rates[k], self.epsilon * d_next, applied)
        ops.assign(self.state.d, d_next)

    def estimate_distance(
        self, gradients: tuple[Tensor, ...], learning_rates: tuple[Tensor, ...], d: Tensor, applied: Tensor
    ) -> Tensor:
        """Update r and s; return the next d, which never falls."""
        state = self.state
        r = state.r * self.beta3
        s_norm = 0.0 * d
        for k in self.trained:
            weight = d / self.d0 * d * learning_rates[k] * self.bias_correction()
            r = r + weight * (gradients[k] * (state.x0[k] - state.vectors[k])).sum()
            s = state.s[k] * self.beta3 + weight * gradients[k]
            s = ops.select((applied > 0).broadcast_to(s.shape), s, state.s[k] * 1.0)
            s_norm = s_norm + ops.abs(s).sum()
            ops.assign(state.s[k], s)
        r = ops.select(applied > 0, r, state.r * 1.0)
        ops.assign(state.r, r)
        return ops.maximum(d, ops.select(s_norm > 0, r / ops.maximum(s_norm, 1e-38), d))


class SphericalSGD(Optimizer):
    """Riemannian SGD on the sphere of directional textual inversion (Kim et al., 2026, arXiv 2512.13672).

    A vector is `scale` · v: its norm `scale` stays that of its initial vector, and its direction v is trained. The von
    Mises-Fisher prior of concentration κ adds -κ μᵀv to the loss, where μ is the initial direction. The gradient with
    respect to v is divided by its norm in the tangent space, or with β > 0 by the root of the norm's average square, so
    that without β every update rotates each vector by arctan(η), whatever the loss scale. Nothing is clipped.

    A vector whose gradient is 0, because no step since the last update had its concept, stays: the prior alone would
    rotate it as far as the images do. `t` counts the updates of each vector.
    """

    def __init__(
        self, state: TrainState, config: TrainingConfig, world: int = 1, token_norms: tuple[float, ...] = ()
    ) -> None:
        super().__init__(state, config, world, token_norms)
        self.max_grad_norm = 0.0
        self.kappa = config.kappa
        self.beta = config.beta

    @staticmethod
    def initial_state(vectors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray] | float]:
        scale = {name: np.linalg.norm(each, axis=1, keepdims=True) for name, each in vectors.items()}
        mu = {name: each / np.maximum(scale[name], 1e-12) for name, each in vectors.items()}
        return {"scale": scale, "mu": mu, "s": _zeros(scale), "t": _zeros(scale)}

    def apply(self, gradients: tuple[Tensor, ...], learning_rates: tuple[Tensor, ...], applied: Tensor) -> None:
        for k in self.trained:
            self.rotate(k, gradients[k], learning_rates[k], applied)

    def rotate(self, k: int, gradient: Tensor, lr: Tensor, applied: Tensor) -> None:
        """Rotate the vectors of encoder `k` that have a gradient; [n, width] or, of their norms, [n, 1]."""
        state = self.state
        moves = ops.logical_and((gradient * gradient).sum(axis=1, keepdims=True) > 0, applied > 0)
        v = self.direction(state.vectors[k] * 1.0)
        g = state.scale[k] * gradient - self.kappa * state.mu[k]
        g = g - (g * v).sum(axis=1, keepdims=True) * v
        s = self.beta * state.s[k] + (1.0 - self.beta) * (g * g).sum(axis=1, keepdims=True)
        t = state.t[k] + 1.0
        g = g / (ops.sqrt(s / (1.0 - ops.pow(self.beta, t))) + _SPHERE_EPSILON)
        vectors = state.scale[k] * self.direction(v - lr * g)
        ops.assign(state.vectors[k], ops.select(moves.broadcast_to(v.shape), vectors, state.vectors[k] * 1.0))
        ops.assign(state.s[k], ops.select(moves, s, state.s[k] * 1.0))
        ops.assign(state.t[k], ops.select(moves, t, state.t[k] * 1.0))

    def direction(self, vectors: Tensor) -> Tensor:
        return vectors / ops.sqrt((vectors * vectors).sum(axis=1, keepdims=True))


OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "prodigy": Prodigy, "direction": SphericalSGD}


def create_train_state(vectors: Mapping[str, np.ndarray], optimizer: str = "adamw", half: bool = False) -> TrainState:
    """Return the state of a new run with the initial `vectors` by text encoder."""
    return TrainState(vectors, half, OPTIMIZERS[optimizer].initial_state(vectors))


def create_optimizer(
    state: TrainState, config: TrainingConfig, world: int = 1, token_norms: tuple[float, ...] = ()
) -> Optimizer:
    """Return the optimizer that the config names, for a `state` that was created for it."""
    return OPTIMIZERS[config.optimizer](state, config, world, token_norms)


def _zeros(vectors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.zeros_like(each) for name, each in vectors.items()}
