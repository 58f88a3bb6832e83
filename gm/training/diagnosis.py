"""Why a run's losses and gradients are not finite any more."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np

from gm.models.sdxl import SDXL
from gm.runtime.backend import Backend
from gm.training.batches import BatchLoader
from gm.training.loop import StepResult
from gm.training.train_step import TrainState


def cause(model: SDXL, learned: TrainState, loader: BatchLoader, report: StepResult, backend: Backend) -> str:
    """Return what is not finite, and the way out, to follow "the step is one"."""
    for name, values in (
        *(("images, encoded,", mean) for mean in loader.latents.mean),
        *zip(("rows", "rows"), learned.arrays(), strict=True),
    ):
        if not np.isfinite(values).all():
            return f"without a finite gradient: the {name} are not finite; look at them and at --adam_epsilon"
    for parameter in (*model.unet.get_parameters(), *model.conditioner.get_parameters()):
        if not np.isfinite(parameter.asnumpy()).all():
            return (
                f"without a finite gradient: {parameter.name} of the weights is not finite; convert or get them again"
            )
    what = "with a finite loss but no finite gradient" if math.isfinite(report.loss) else "without a finite loss"
    if backend.dtype == ms.float16:
        scale = float(learned.scale.asnumpy())
        return f"{what}, in float16 at a loss scale of {scale:g}: use --precision bfloat16 or float32"
    return f"{what}, though images, rows and weights are: lower --learning_rate"
