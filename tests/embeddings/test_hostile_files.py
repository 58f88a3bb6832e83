"""Damaged and malicious embedding files of every container: valid embeddings or a message of one line."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gm.config import POOLING_RULES
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import UNKNOWN_POOLING, Embedding
from gm.embeddings.io import EmbeddingFile
from gm.errors import UserError
from tests.checkpoints.files import little_memory, mutations, replace_file

CLIP_L, CLIP_G = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 5), np.float32)
SUFFIXES = {
    "clip": ".safetensors",
    "mindspore": ".ckpt",
    "roettger": ".pt",
    "a1111": ".pt",
    "diffusers": ".safetensors",
}


def write(folder: Path, format_: str) -> bytes:
    """Write an embedding file and return its bytes; diffusers' second file is put beside the first."""
    vectors = {"clip_l": CLIP_L, "clip_g": CLIP_G}
    if format_ == "roettger":
        vectors = {encoder: array[:1] for encoder, array in vectors.items()}
    if format_ == "a1111":
        vectors = {"clip_l": CLIP_L}
    embeddings = {"<a>": vectors, "<b>": vectors} if format_ == "diffusers" else {"<cat>": vectors}
    metadata = {"pooling": "argmax", "details": '{"step": 7}', "step": 7}
    file = EmbeddingFile(format_, embeddings, metadata)
    paths = embedding_io.write_file(file, folder / f"learned_embeds{SUFFIXES[format_]}", format_, overwrite=True)
    return paths[0].read_bytes()


@pytest.mark.parametrize("format_", SUFFIXES)
def test_two_thousand_mutations_of_each_format_are_read_or_refused(tmp_path: Path, format_: str) -> None:
    content = write(tmp_path, format_)
    path, refusals = tmp_path / f"learned_embeds{SUFFIXES[format_]}", []
    before = {each.name for each in tmp_path.iterdir()}
    for changed in mutations(content, 2000, seed=2):
        replace_file(path, changed)
        try:
            if format_ == "a1111":
                assert_well_formed_file(embedding_io.read_file(path))
            else:
                for embedding in embedding_io.load_all(path):
                    assert_well_formed(embedding)
        except UserError as error:
            refusals.append(str(error))
    assert all(len(text.splitlines()) == 1 for text in refusals)
    assert 500 < len(refusals) < 2000
    assert {each.name for each in tmp_path.iterdir()} == before


def assert_well_formed_file(file: EmbeddingFile) -> None:
    assert all(isinstance(token, str | None) for token in file.vectors)
    assert all(array.ndim == 2 for vectors in file.vectors.values() for array in vectors.values())


def assert_well_formed(embedding: Embedding) -> None:
    """Assert that an embedding has what its users rely on."""
    assert isinstance(embedding.placeholder_token, str)
    assert embedding.placeholder_token
    assert list(embedding.vectors) in (["clip_l", "clip_g"], ["clip_l"], ["clip_g"])
    assert all(array.ndim == 2 and array.dtype == np.float32 for array in embedding.vectors.values())
    assert all(len(array) == embedding.num_vectors > 0 for array in embedding.vectors.values())
    assert embedding.pooling in (*POOLING_RULES, UNKNOWN_POOLING)
    assert isinstance(embedding.metadata, dict)


@pytest.mark.parametrize("format_", SUFFIXES)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, format_: str) -> None:
    content, count = write(tmp_path, format_), 0
    path = tmp_path / f"learned_embeds{SUFFIXES[format_]}"
    for end in range(1, len(content), 37):
        replace_file(path, content[:end])
        try:
            embedding_io.read_file(path)
            count += 1
        except UserError:
            continue
    assert count == 0 or (format_ == "mindspore" and count < 4)  # cut between two of its entries


def test_too_many_vectors_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"clip_l":{"dtype":"F32","shape":[4000000000,1],"data_offsets":[0,16000000000]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + 16 * 10**9)  # takes up no disk
    with (
        little_memory(),
        pytest.raises(UserError, match=r"float32 \[4000000000, 1\] in place of embedding vectors"),
    ):
        embedding_io.load_all(path)


def test_values_beyond_float32_become_infinite_without_a_warning_and_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"clip_l": np.full((2, 3), 1e300), "clip_g": np.ones((2, 5))}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (vectors,) = embedding_io.read_file(path).vectors.values()
        assert np.isinf(vectors["clip_l"]).all()
        with pytest.raises(UserError, match="vectors that are not finite"):
            embedding_io.load(path)


@pytest.mark.parametrize("token", ["../../up", "/dev/null", "a\0b", "a\nb", "<" * 5000, "\u202eyot"])
def test_a_placeholder_token_is_never_used_as_a_path(tmp_path: Path, token: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for suffix, array in (("", CLIP_L), ("_2", CLIP_G)):
        save_file({token: array}, folder / f"learned_embeds{suffix}.safetensors")
    if token.startswith(("..", "/")):
        (embedding,) = embedding_io.load_all(folder)
        assert embedding.placeholder_token == token
    else:
        with pytest.raises(
            UserError, match=r"has 5000 characters|contains characters that cannot be printed"
        ) as caught:
            embedding_io.load_all(folder)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "in",
        "learned_embeds.safetensors",
        "learned_embeds_2.safetensors",
    ]
