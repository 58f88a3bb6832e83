"""Full pipelines: base models saved by diffusers, and written with vectors of placeholder tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gm.checkpoints import full_pipeline
from gm.config.model import ModelConfig

TOKENS = ["<cat-toy>", "<cat-toy>_1", "<Style>"]
SavedPipeline = Callable[[str], Path]


def random_vectors(config: ModelConfig, count: int = len(TOKENS)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng()
    return {
        name: (0.05 * rng.standard_normal((count, encoder.width))).astype(np.float32)
        for name, encoder in config.text_encoders.items()
    }


def write(source: Path, target: Path, config: ModelConfig, **networks: str) -> dict[str, np.ndarray]:
    vectors = random_vectors(config)
    full_pipeline.write(full_pipeline.prepare(source, config, TOKENS, networks), target, vectors)
    return vectors


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
