"""Images of the word while it is learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gm.embeddings.embedding import Embedding, combine
from gm.models.sdxl import SDXL
from gm.runtime.backend import Backend
from gm.sampling import image_files, request
from gm.sampling.pipeline import Pipeline
from gm.training.setup import TrainingSetup

BOTH = "before_after.png"


class Previews:
    """Draws the plan's previews into `folder`: a row a prompt, `num_cols` × `num_rows` images of each."""

    def __init__(self, model: SDXL, plan: TrainingSetup, backend: Backend, folder: Path) -> None:
        self.pipeline = Pipeline(model, backend, plan.config.run.pooling)
        self.plan, self.folder = plan, folder

    def draw(self, now: Sequence[Embedding], step: int) -> tuple[Path, np.ndarray]:
        """Draw the sheet of `step` (0 is before anything is learned); return its path and pixels, uint8 [H, W, 3]."""
        known, images = combine(now, self.plan.config.model), []
        for sampling in self.plan.previews:
            count = sampling.num_cols * sampling.num_rows
            requests = request.image_requests([sampling.prompt] * count, sampling, self.plan.config.model, known)
            images += [p for progress in self.pipeline.generate(requests, known, sampling) for p in progress.images]
        first = self.plan.previews[0]
        rows = [sampling.prompt for sampling in self.plan.previews]
        recipe = {**dataclasses.asdict(first), "prompts": rows, "step": step}
        columns = first.num_cols if len(rows) == 1 else first.num_cols * first.num_rows
        sheet = image_files.make_grid(images, columns)
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
        image_files.write(image_files.make_grid([before, after], 2), {"steps": [0, step]}, path)
        return path

    def place(self, step: int) -> Path:
        return self.folder / f"step_{step}.png"
