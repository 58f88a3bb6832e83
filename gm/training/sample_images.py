"""Pictures of the word while it is learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gm.embeddings.embedding import Concept, words
from gm.models.sdxl import SDXL
from gm.runtime.backend import Backend
from gm.sampling import image_files
from gm.sampling.orders import Order
from gm.sampling.pipeline import Painter
from gm.training.setup import Plan

BOTH = "before_after.png"


class Previews:
    """Draws the plan's previews into `folder`: a row a prompt, `num_cols` × `num_rows` pictures of each."""

    def __init__(self, model: SDXL, plan: Plan, backend: Backend, folder: Path) -> None:
        self.painter = Painter(model, backend, plan.config.run.pooling)
        self.plan, self.folder = plan, folder

    def draw(self, now: Sequence[Concept], step: int) -> tuple[Path, np.ndarray]:
        """Draw the sheet of `step` (0 is before anything is learned); return its path and pixels, uint8 [H, W, 3]."""
        known, pictures = words(now, self.plan.config.model), []
        for sampling in self.plan.previews:
            count = sampling.num_cols * sampling.num_rows
            orders = [Order(sampling.prompt, sampling.seed + k) for k in range(count)]
            pictures += [p for progress in self.painter.draw(orders, known, sampling) for p in progress.pictures]
        first = self.plan.previews[0]
        rows = [sampling.prompt for sampling in self.plan.previews]
        recipe = {**dataclasses.asdict(first), "prompts": rows, "step": step}
        columns = first.num_cols if len(rows) == 1 else first.num_cols * first.num_rows
        sheet = image_files.grid(pictures, columns)
        path = self.place(step)
        image_files.write(sheet, recipe, path)
        return path, sheet

    def compare(self, after: np.ndarray, step: int) -> Path | None:
        """Write the sheet from before anything was learned beside `after`; None if it is not there any more."""
        if not self.place(0).is_file():
            return None
        with Image.open(self.place(0)) as image:
            before = np.asarray(image.convert("RGB"))
        path = self.folder / BOTH
        image_files.write(image_files.grid([before, after], 2), {"steps": [0, step]}, path)
        return path

    def place(self, step: int) -> Path:
        return self.folder / f"step_{step}.png"
