"""An embedding file as training writes it, with details that name places on the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding

RECIPE = {
    "run": {"weight": "/home/ann/secret/model.ckpt", "precision": "float32"},
    "concept": {"learnable_property": "style", "initializer_file": "secret_ti.ckpt", "template_file": None},
    "data": {"data_path": "secret photos", "random_flip": True},
    "training": {"save_path": "C:\\secret", "validation_prompt": ["red and/or blue", "secret.txt"], "total_step": 7},
}
DETAILS = {"version": "SD-XL-base-1.0", "base_model": "9d0f", "step": 7, "seed": 42, "recipe": RECIPE}


def saved(path: Path, word: str = "<cat-toy>", pooling: str = "end_of_text", metadata: Any = DETAILS) -> Path:
    rows = (np.random.default_rng(k).standard_normal((2, k)).astype(np.float32) for k in (16, 24))
    embedding_io.save(Embedding(word, dict(zip(("clip_l", "clip_g"), rows, strict=True)), pooling, metadata), path)
    return path


def card(target: Path) -> tuple[dict[str, Any], str]:
    """Return the head and the text of a card."""
    head, text = (target / "README.md").read_text().removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(head), text
