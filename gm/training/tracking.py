"""Curves, rows and previews for TensorBoard, by tensorboardX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gm.errors import UserError


class Tracker:
    """Writes into `folder`; what was written there after `step`, by the run that is gone on from, is hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from tensorboardX import SummaryWriter  # type: ignore[import-untyped]
        except ImportError as error:
            raise UserError("--tensorboard needs tensorboardX: pip install tensorboardX, or leave it out") from error
        self.writer = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=10)

    def values(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add a point to each curve; what is no finite number is left out."""
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self.writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, lines: Any) -> None:
        """Add lines of text, a list in Markdown."""
        self.writer.add_text(name, "\n".join(f"- {line}" for line in lines), step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Add an image, uint8 [H, W, 3]."""
        self.writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()
