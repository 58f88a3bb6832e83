"""TensorBoard logger, by tensorboardX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gm.errors import UserError
from gm.training.callbacks.base import Callback, TrainerView
from gm.training.step_result import StepResult

_STEP_METRICS = ("loss", "loss_smoothed", "learning_rate", "gradient_norm", "context_loss")


class TensorBoardLogger(Callback):
    """Logs losses, learning rate, gradient norm, norms, angles and nearest tokens of the vectors, and sample images.

    Events in `folder` after `step`, of the run that is resumed, are hidden.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        try:
            from tensorboardX import SummaryWriter  # type: ignore[import-untyped]
        except ImportError as error:
            raise UserError("--tensorboard needs tensorboardX: pip install tensorboardX, or leave it out") from error
        self.writer = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=10)
        self.file_stems: dict[str, str] = {}  # by placeholder token, in a run of several concepts

    def on_train_begin(self, trainer: TrainerView) -> None:
        concepts = trainer.setup.concepts
        if len(concepts) > 1:
            self.file_stems = {concept.placeholder_token: concept.file_stem for concept in concepts}

    def on_step_end(self, result: StepResult) -> None:
        self.add_scalars(result.step, {name: getattr(result, name) for name in _STEP_METRICS})

    def needs_state(self, step: int) -> bool:
        return False

    def on_log(self, record: dict[str, Any]) -> None:
        if "validation_loss" in record:
            self.add_scalars(record["step"], {"validation_loss": record["validation_loss"]})
        if "nearest_tokens" in record:
            self._add_vectors(record)

    def on_sample_images(self, step: int, grid: np.ndarray) -> None:
        self.writer.add_image("sample_images", grid, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()

    def add_scalars(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Add a point to each curve; None, not-a-number and infinity are left out."""
        for name, value in scalars.items():
            if value is not None and math.isfinite(value):
                self.writer.add_scalar(name, value, step)

    def _add_vectors(self, record: dict[str, Any]) -> None:
        step = record["step"]
        encoder = record["encoder"]
        stem = self.file_stems.get(record["placeholder_token"], "")
        for name, key in (("norm", "norms"), ("relative_norm", "relative_norms"), ("angle", "angles")):
            prefix = f"{name}_{encoder}/{stem}_" if stem else f"{name}_{encoder}/"
            self.add_scalars(step, {f"{prefix}vector_{k}": value for k, value in enumerate(record[key])})
        lines = [", ".join(f"{token} {cosine:.2f}" for token, cosine in tokens) for tokens in record["nearest_tokens"]]
        name = f"nearest_tokens_{encoder}/{stem}" if stem else f"nearest_tokens_{encoder}"
        self.writer.add_text(name, "\n".join(f"- {line}" for line in lines), step)
