"""Fixtures of the command for embedding files."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from tests.project import Call

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "convert_weights" / "embedding.py"


@pytest.fixture
def embedding(call: Call) -> Call:
    """Return the function that calls the script."""
    return functools.partial(call, SCRIPT)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Return the embedding file of <toy>."""
    vectors = {
        encoder: np.random.default_rng(seed).standard_normal((2, width)).astype(np.float32)
        for seed, encoder, width in ((1, "clip_l", 16), (2, "clip_g", 24))
    }
    path = tmp_path / "smallest_7_ti.ckpt"
    embedding_io.save(Embedding("<toy>", vectors, "end_of_text", {"step": 7}), path)
    return path
