"""Sample images, generated while the embedding is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from gm.sampling import adjusted_embeddings, image_files, request
from gm.sampling.pipeline import Pipeline
from gm.training import embedding_files
from gm.training.callbacks.base import Callback, TrainerView, skip_failed_write, write_line
from gm.training.step_result import StepResult
from gm.training.train_state import Vectors

COMPARISON = "before_after.png"


class SampleImages(Callback):
    """Writes a grid, `step_<step>.png`, of step 0, of every `infer_interval`th step and of the last.

    It has a row per prompt, with `num_cols` × `num_rows` images each. At the end, `before_after.png` compares the first
    and the last grid.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, trainer: TrainerView) -> None:
        self.trainer = trainer
        self.pipeline = Pipeline(trainer.model, trainer.backend, trainer.setup.config.run.pooling)

    def on_first_step(self, vectors: Vectors) -> None:
        if not self.trainer.setup.resume_from:
            with skip_failed_write("the sample image"):
                self._sample(0, vectors)

    def on_step_end(self, result: StepResult) -> None:
        if result.ended or not (result.is_last or self.needs_state(result.step)):
            return
        with skip_failed_write("the sample image"):
            grid = self._sample(result.step, self.trainer.state.vector_arrays())
            if result.is_last:
                self._compare(grid, result.step)

    def needs_state(self, step: int) -> bool:
        return step % self.trainer.setup.config.training.infer_interval == 0

    def _sample(self, step: int, vectors: Vectors) -> np.ndarray:
        """Generate and write the grid of `step`; return it, uint8 [H, W, 3]."""
        trainer = self.trainer
        trained = embedding_files.embeddings(trainer.setup, vectors, trainer.base_model, step)
        loaded = adjusted_embeddings.load(trained, trainer.setup.sample_requests, trainer.setup.config.model)
        images: list[np.ndarray] = []
        for sampling in trainer.setup.sample_requests:
            count = sampling.num_cols * sampling.num_rows
            requests = request.image_requests([sampling.prompt] * count, sampling, trainer.setup.config.model, loaded)
            for progress in self.pipeline.generate(requests, loaded, sampling):
                images += progress.images
        first = trainer.setup.sample_requests[0]
        prompts = [sampling.prompt for sampling in trainer.setup.sample_requests]
        columns = first.num_cols if len(prompts) == 1 else first.num_cols * first.num_rows
        grid = image_files.make_grid(images, columns)
        metadata = {**dataclasses.asdict(first), "prompts": prompts, "step": step}
        image_files.write(grid, metadata, self._path(step))
        write_line(f"sample images {self._path(step)}")
        for callback in trainer.callbacks:
            callback.on_sample_images(step, grid)
        return grid

    def _compare(self, after: np.ndarray, step: int) -> None:
        """Write the grid before training beside `after`, unless it has been removed."""
        if not self._path(0).is_file():
            return
        with Image.open(self._path(0)) as image:
            before = np.asarray(image.convert("RGB"))
        path = self.folder / COMPARISON
        image_files.write(image_files.make_grid([before, after], 2), {"steps": [0, step]}, path)
        write_line(f"before and after: {path}")

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step}.png"
