"""Embedding files of every container that are damaged or made to hurt: words with rows come out, or one line."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from gm.config import POOLING_RULES
from gm.embeddings import interchange
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.embeddings.interchange import EmbeddingFile
from gm.errors import UserError
from tests.checkpoints.files import little_memory, mutations

ONE, TWO = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 5), np.float32)
CONCEPT = Embedding("<cat>", {"clip_l": ONE, "clip_g": TWO}, "argmax", {"step": 7})
KINDS = {
    "clip": ".safetensors",
    "mindspore": ".ckpt",
    "roettger": ".pt",
    "a1111": ".pt",
    "diffusers": ".safetensors",
}


def whole(folder: Path, kind: str) -> bytes:
    """Return an embedding file; diffusers' holds both encoders' rows only together with its second, put beside it."""
    rows = (ONE[:1], TWO[:1]) if kind == "roettger" else (ONE, None) if kind == "a1111" else (ONE, TWO)
    words = {"<a>": rows, "<b>": rows} if kind == "diffusers" else {"<cat>": rows}
    notes = {"pooling": "argmax", "details": '{"step": 7}', "step": 7}
    paths = interchange.write(
        EmbeddingFile(kind, words, notes), folder / f"learned_embeds{KINDS[kind]}", kind, overwrite=True
    )
    return paths[0].read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_mutations_of_each(tmp_path: Path, kind: str) -> None:
    content = whole(tmp_path, kind)
    path, refusals = tmp_path / f"learned_embeds{KINDS[kind]}", []
    before = {each.name for each in tmp_path.iterdir()}
    for changed in mutations(content, 2000, seed=2):
        path.write_bytes(changed)
        try:
            for learned in [interchange.read(path)] if kind == "a1111" else embedding_io.load_all(path):
                well_formed(learned)
        except UserError as error:
            refusals.append(str(error))
    assert all(len(text.splitlines()) == 1 for text in refusals)
    assert 500 < len(refusals) < 2000
    assert {each.name for each in tmp_path.iterdir()} == before


def well_formed(found: Embedding | EmbeddingFile) -> None:
    """Assert that whoever uses what was read finds what he may rely on."""
    if isinstance(found, EmbeddingFile):
        assert all(isinstance(word, str | None) for word in found.words)
        assert all(one is None or one.ndim == 2 for rows in found.words.values() for one in rows)
        return
    assert isinstance(found.placeholder_token, str)
    assert found.placeholder_token
    assert found.vectors["clip_l"].ndim == found.vectors["clip_g"].ndim == 2
    assert found.vectors["clip_l"].dtype == found.vectors["clip_g"].dtype == np.float32
    assert len(found.vectors["clip_l"]) == len(found.vectors["clip_g"]) > 0
    assert found.pooling in POOLING_RULES
    assert isinstance(found.metadata, dict)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_off_anywhere(tmp_path: Path, kind: str) -> None:
    content, read = whole(tmp_path, kind), 0
    path = tmp_path / f"learned_embeds{KINDS[kind]}"
    for end in range(1, len(content), 37):
        path.write_bytes(content[:end])
        try:
            interchange.read(path)
            read += 1
        except UserError:
            continue
    assert read == 0 or (kind == "mindspore" and read < 4)  # cut between two of its entries


T = torch.ones(2, 3)


@pytest.mark.parametrize(
    "tree",
    [
        {"clip_l": "rows", "clip_g": T},
        {"clip_l": 3, "clip_g": [1]},
        {"clip_l": torch.tensor(3.5), "clip_g": T},
        {"clip_l": torch.zeros(0, 3), "clip_g": torch.zeros(0, 3)},
        {"clip_l": T, "clip_g": torch.ones(2, 3, 4)},
        {"clip_l": T, "clip_g": torch.ones(2, 3, dtype=torch.int64)},
        {"clip_l": T, "clip_g": {"a": T}},
        {"emb_params": None},
        {"emb": T, "emb2": T.bool()},
        {"string_to_param": {"*": torch.tensor(3.5)}},
        {"string_to_param": {"_parameters": 3}},
        {"string_to_param": {"_parameters": T}},
        {"string_to_param": {"*": [T]}},
        {"string_to_param": {}},
        {5: T},
        {b"<a>": T},
        {"<a>": T, 5: T},
        OrderedDict({"": 3}),
        3,
        {"clip_l": T, "clip_g": T, "pooling": 3},
        {"clip_l": T, "clip_g": T, "details": 3.5},
        {"clip_l": T, "clip_g": T, "of_words": 3},
        {"clip_l": T, "clip_g": T, "of_words": '{"": []}'},
    ],
)
def test_trees_that_hold_something_else_where_rows_or_notes_should_be(tmp_path: Path, tree: Any) -> None:
    torch.save(tree, tmp_path / "a.pt")
    with little_memory(), pytest.raises(UserError) as caught:
        embedding_io.load_all(tmp_path / "a.pt")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("noted", "word"), [("", "my-cat"), (3, "3"), ([T], "my-cat"), (None, "my-cat")])
def test_a_word_that_is_no_text(tmp_path: Path, noted: Any, word: str) -> None:
    torch.save({"clip_l": T, "clip_g": T, "placeholder_token": noted}, tmp_path / "my-cat.pt")
    assert embedding_io.load(tmp_path / "my-cat.pt").placeholder_token == word


def test_rows_that_are_too_many_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"clip_l":{"dtype":"F32","shape":[4000000000,1],"data_offsets":[0,16000000000]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + 16 * 10**9)  # takes up no disk
    with little_memory(), pytest.raises(UserError, match=r"float32 \[4000000000, 1\] where rows should be"):
        embedding_io.load_all(path)


def test_rows_beyond_float32_are_infinite_without_a_warning_and_of_no_use(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"clip_l": np.full((2, 3), 1e300), "clip_g": np.ones((2, 5))}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ((one, _),) = interchange.read(path).words.values()
        assert np.isinf(one).all()
        with pytest.raises(UserError, match="rows that are no finite numbers"):
            embedding_io.load(path)


@pytest.mark.parametrize("word", ["../../up", "/dev/null", "a\0b", "a\nb", "<" * 5000])
def test_a_words_spelling_names_no_file(tmp_path: Path, word: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for second, rows in (("", ONE), ("_2", TWO)):
        save_file({word: rows}, folder / f"learned_embeds{second}.safetensors")
    (found,) = embedding_io.load_all(folder)
    assert found.placeholder_token == word
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "in",
        "learned_embeds.safetensors",
        "learned_embeds_2.safetensors",
    ]
