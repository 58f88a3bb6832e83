"""Divergence: detection of consecutive steps without a finite loss and gradient, and its cause."""

from __future__ import annotations

import math
from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Tensor

from gm.models.stable_diffusion import StableDiffusion
from gm.runtime import float_status
from gm.runtime.backend import Backend
from gm.training.step_result import StepResult
from gm.training.train_state import TrainState


class DivergenceGuard:
    """Counts consecutive steps that are not finite, and keeps the vectors of the last finite step."""

    def __init__(self, state: TrainState, max_skipped_steps: int) -> None:
        self.state = state
        self.max_skipped_steps = max_skipped_steps
        self.skipped_in_a_row = 0
        self.last_finite_vectors: Mapping[str, np.ndarray | Tensor] = state.vector_arrays()

    @property
    def may_end(self) -> bool:
        """Whether the next step ends the run if it is not finite."""
        return self.skipped_in_a_row + 1 >= self.max_skipped_steps

    def check(self, finite: bool, vectors: Mapping[str, np.ndarray | Tensor]) -> bool:
        """Record a step that used `vectors`.

        After `max_skipped_steps` in a row that were not finite, restore the last finite vectors and return True.
        """
        if finite:
            self.skipped_in_a_row = 0
            self.last_finite_vectors = vectors
        else:
            self.skipped_in_a_row += 1
        if self.skipped_in_a_row < self.max_skipped_steps:
            return False
        self.state.set_vectors(self.last_finite_vectors)
        return True


def cause(model: StableDiffusion, state: TrainState, result: StepResult, backend: Backend) -> str:
    """Return why loss or gradient are not finite, and the remedy, to follow "without"/"with" in a sentence."""
    if not all(np.isfinite(vectors).all() for vectors in state.vector_arrays().values()):
        return "without a finite gradient: the embedding vectors are not finite; look at --adam_epsilon"
    for parameter in (*model.unet.get_parameters(), *model.conditioner.get_parameters()):
        if not np.isfinite(parameter.asnumpy()).all():
            return (
                f"without a finite gradient: {parameter.name} of the weights is not finite; convert or download them "
                "again"
            )
    symptom = "with a finite loss but no finite gradient" if math.isfinite(result.loss) else "without a finite loss"
    if backend.dtype == ms.float16:
        scale = float(state.loss_scale.asnumpy())
        has_bfloat16 = backend.device == "Ascend" and not float_status.saturates()
        remedy = "bfloat16 or float32" if has_bfloat16 else "float32"
        return f"{symptom}, in float16 at a loss scale of {scale:g}: use --precision {remedy}"
    return f"{symptom}, though images, vectors and weights are finite: lower --learning_rate"
