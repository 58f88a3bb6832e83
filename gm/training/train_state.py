"""Training state: everything that a training step or an optimizer update changes."""

from __future__ import annotations

from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn

from gm.errors import UserError

Vectors = dict[str, np.ndarray]  # float32 [num_vectors of all concepts, width] by text encoder

_INITIAL_LOSS_SCALE = 2.0**16


class TrainState(nn.Cell):
    """Embedding vectors, gradient sums, optimizer state, counters and loss scale as MindSpore parameters.

    `vectors` are the initial embedding vectors by text encoder, in the order of `config.model.text_encoders`; every
    other value per encoder is in the same order. `optimizer_state` is what `Optimizer.initial_state` returns: each
    entry becomes an attribute, a `ParameterTuple` over the encoders or a scalar. Nothing but the vectors requires a
    gradient. With `half`, for frozen weights in float16, the loss scale starts high (Micikevicius et al., 2018).
    """

    def __init__(
        self,
        vectors: Mapping[str, np.ndarray],
        half: bool = False,
        optimizer_state: Mapping[str, Mapping[str, np.ndarray] | float] | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.encoders = tuple(vectors)
        self.vectors = _per_encoder("vectors", vectors)
        self.gradient_sums = _per_encoder("gradient_sums", {name: 0 * each for name, each in vectors.items()})
        for name, value in (optimizer_state or {}).items():
            setattr(self, name, _parameter(name, value) if isinstance(value, float) else _per_encoder(name, value))
        self.num_summed = _parameter("num_summed", 0.0)  # steps in the gradient sums
        self.updates = _parameter("updates", 0.0)
        self.loss_scale = _parameter("loss_scale", _INITIAL_LOSS_SCALE if half else 1.0)
        self.finite_streak = _parameter("finite_streak", 0.0)  # finite steps since the loss scale changed

    def vector_arrays(self) -> Vectors:
        """Return copies of the embedding vectors by text encoder."""
        return {name: each.asnumpy().copy() for name, each in zip(self.encoders, self.vectors, strict=True)}

    def vector_copies(self) -> dict[str, Tensor]:
        """Return copies of the embedding vectors by text encoder, which stay on the device; nothing waits for it."""
        return {name: each * 1.0 for name, each in zip(self.encoders, self.vectors, strict=True)}

    def set_vectors(self, vectors: Mapping[str, np.ndarray | Tensor]) -> None:
        """Replace the embedding vectors."""
        for name, parameter in zip(self.encoders, self.vectors, strict=True):
            parameter.set_data(Tensor(vectors[name]))

    def snapshot(self) -> dict[str, np.ndarray]:
        """Return copies of all parameters, float32, by name."""
        return {parameter.name: parameter.asnumpy().copy() for parameter in self.get_parameters()}

    def restore(self, values: Mapping[str, np.ndarray]) -> None:
        """Set all parameters from a `snapshot`; UserError if it does not fit this run."""
        parameters = {parameter.name: parameter for parameter in self.get_parameters()}
        missing = sorted(parameters.keys() - values.keys())
        if missing:
            raise UserError(
                f"--resume: the training state has no {missing[0]}; another version saved it: start a new run"
            )
        for name, value in values.items():
            if name not in parameters or parameters[name].size != value.size:
                raise UserError(f"--resume: {name} {list(value.shape)} of the training state does not fit this run")
            parameters[name].set_data(Tensor(value.reshape(parameters[name].shape)))


def _per_encoder(name: str, values: Mapping[str, np.ndarray]) -> ParameterTuple:
    return ParameterTuple([_parameter(f"{name}.{encoder}", value) for encoder, value in values.items()])


def _parameter(name: str, value: np.ndarray | float) -> Parameter:
    trainable = name.startswith("vectors.")
    return Parameter(Tensor(np.asarray(value, np.float32), ms.float32), name=name, requires_grad=trainable)
