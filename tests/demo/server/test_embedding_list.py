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


def test_a_training_run_is_its_best_with_its_other_steps(tmp_path: Path) -> None:
    run = tmp_path / "cat-toy"
    run.mkdir()
    for step in ("5", "10", "100"):
        save("<toy>", run / f"smallest_{step}_ti.ckpt")
    found = embedding_list.find_embeddings(tmp_path)
    assert found["<toy>"] == run / "smallest_100_ti.ckpt"
    assert set(found) == {"<toy>", "<toy>, step 5 (cat-toy)", "<toy>, step 10 (cat-toy)"}
    save("<toy>", run / "smallest_best_ti.ckpt")
    found = embedding_list.find_embeddings(tmp_path)
    assert found["<toy>"] == run / "smallest_best_ti.ckpt"
    assert embedding_list.steps_of_runs(found.values()) == {
        found["<toy>"]: {step: run / f"smallest_{step}_ti.ckpt" for step in ("best", "100", "10", "5")}
    }
    assert list(embedding_list.steps_of_runs(found.values())[found["<toy>"]]) == ["best", "100", "10", "5"]
    save("<toy>", tmp_path / "other.ckpt")
    names = embedding_list.find_embeddings(tmp_path)
    assert names["<toy> (cat-toy)"] == run / "smallest_best_ti.ckpt"
    assert names["<toy> (other.ckpt)"] == tmp_path / "other.ckpt"
