"""An embedding file as training writes it, with metadata that holds private paths, and the parts of a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding

OPTIONS = {
    "run": {"weight": "/home/ann/secret/model.ckpt", "precision": "float32"},
    "concept": {"learnable_property": "style", "initializer_file": "secret_ti.ckpt", "template_file": None},
    "data": {"data_path": "secret photos", "random_flip": True},
    "training": {"save_path": "C:\\secret", "validation_prompt": ["red and/or blue", "secret.txt"], "total_step": 7},
}
METADATA = {"version": "SD-XL-base-1.0", "base_model": "9d0f", "step": 7, "seed": 42, "recipe": OPTIONS}


def save_embedding(
    path: Path, token: str = "<cat-toy>", pooling: str = "end_of_text", metadata: Any = METADATA
) -> Path:
    vectors = {
        encoder: np.random.default_rng(width).standard_normal((2, width)).astype(np.float32)
        for encoder, width in (("clip_l", 16), ("clip_g", 24))
    }
    embedding_io.save(Embedding(token, vectors, pooling, metadata), path)
    return path


def read_card(target: Path) -> tuple[dict[str, Any], str]:
    """Return the metadata and the text of a model card."""
    metadata, text = (target / "README.md").read_text().removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(metadata), text
