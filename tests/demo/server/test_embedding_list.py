"""The list of embedding files in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from demo.app.server import embedding_list
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding


def save(token: str, path: Path) -> None:
    vectors = {"clip_l": np.ones((2, 4), np.float32), "clip_g": np.full((2, 6), 2.0, np.float32)}
    embedding_io.save(Embedding(token, vectors), path)


def test_embedding_files_are_found_by_content_and_named_by_token(tmp_path: Path) -> None:
    assert embedding_list.find_embeddings(tmp_path) == {}
    save("<toy>", tmp_path / "first.ckpt")
    (tmp_path / "run").mkdir()
    save("<hat>", tmp_path / "run" / "hat.safetensors")
    (tmp_path / "run" / "model.ckpt").write_bytes(b"not an embedding file")
    save("<half>", tmp_path / "run" / "state_5.ckpt")
    save("<toy>", tmp_path / "first.safetensors")  # the same embedding in another format
    (tmp_path / "notes.txt").write_text("x")
    assert set(embedding_list.find_embeddings(tmp_path)) == {"<toy>", "<hat>"}
    save("<toy>", tmp_path / "run" / "second.ckpt")
    assert set(embedding_list.find_embeddings(tmp_path)) == {
        "<toy> (first.ckpt)",
        "<toy> (run/second.ckpt)",
        "<hat>",
    }
    save("<cap>", tmp_path / "first.ckpt")
    assert set(embedding_list.find_embeddings(tmp_path)) == {"<toy>", "<cap>", "<hat>"}
