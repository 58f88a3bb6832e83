"""Embeddings with random vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.embeddings.formats import EncoderVectors

SDXL_WIDTHS = {"clip_l": 768, "clip_g": 1280}


def random_embedding(token: str = "<toy>", num_vectors: int = 2, seed: int = 0) -> Embedding:
    """Return an embedding for the text encoders of the smallest model, with metadata."""
    rng = np.random.default_rng(seed)
    vectors = {
        encoder: rng.standard_normal((num_vectors, width)).astype(np.float32)
        for encoder, width in (("clip_l", 16), ("clip_g", 24))
    }
    return Embedding(token, vectors, "end_of_text", {"step": 7, "recipe": {"data": {"random_flip": True}}})


def random_vectors(num_vectors: int = 1, encoders: tuple[str, ...] = ("clip_l", "clip_g")) -> EncoderVectors:
    """Return vectors as wide as those of SDXL's text encoders, by which formats tell them apart."""
    rng = np.random.default_rng(num_vectors)
    return {
        encoder: rng.standard_normal((num_vectors, SDXL_WIDTHS[encoder])).astype(np.float32) for encoder in encoders
    }


def save_dog(folder: Path, token: str = "<dog>", num_vectors: int = 2, pooling: str = "end_of_text") -> Path:
    """Save an embedding of the widths of `toy` in `folder`, and return its file."""
    vectors = {
        encoder: np.random.default_rng(9 + width).standard_normal((num_vectors, width)).astype(np.float32)
        for encoder, width in (("clip_l", 16), ("clip_g", 24))
    }
    embedding_io.save(Embedding(token, vectors, pooling), folder / "dog_ti.ckpt")
    return folder / "dog_ti.ckpt"


def assert_same_vectors(vectors: EncoderVectors, expected: EncoderVectors) -> None:
    """Assert that both have the same text encoders and, to the bit, the same vectors."""
    assert list(vectors) == list(expected)
    for encoder, array in expected.items():
        assert np.array_equal(vectors[encoder], array), encoder
