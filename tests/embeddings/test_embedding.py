"""Embedding files and the joining of concepts."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import safetensors.numpy
from mindspore import Tensor

from gm.config.model import ModelConfig, TextEncoderConfig, UNetConfig
from gm.embeddings import formats, init
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding, combine
from gm.embeddings.formats import CLIP_G_TABLE, CLIP_L_TABLE
from gm.errors import UserError
from gm.text.tokenizer import Tokenizer

CONFIG = ModelConfig(
    text_encoder_1=TextEncoderConfig(width=16, layers=2, heads=2),
    text_encoder_2=TextEncoderConfig(width=24, layers=2, heads=2),
    unet=UNetConfig(context_dim=40, adm_in_channels=72),
)


def concept(word: str = "<toy>", vectors: int = 2, seed: int = 0) -> Embedding:
    random = np.random.default_rng(seed)
    rows = [random.standard_normal((vectors, width)).astype(np.float32) for width in (16, 24)]
    return Embedding(
        word,
        {"clip_l": rows[0], "clip_g": rows[1]},
        "end_of_text",
        {"step": 7, "recipe": {"data": {"random_flip": True}}},
    )


def assert_equal(a: Embedding, b: Embedding) -> None:
    assert (a.placeholder_token, a.pooling, a.metadata) == (b.placeholder_token, b.pooling, b.metadata)
    assert np.array_equal(a.vectors["clip_l"], b.vectors["clip_l"])
    assert np.array_equal(a.vectors["clip_g"], b.vectors["clip_g"])


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("vectors", [1, 10])
def test_a_file_gives_back_what_was_saved(tmp_path: Path, vectors: int, ending: str) -> None:
    saved = concept("<ein-schöner-Würfel>", vectors)
    embedding_io.save(saved, tmp_path / f"a_ti{ending}")
    assert_equal(embedding_io.load(tmp_path / f"a_ti{ending}"), saved)


def test_other_programs_find_the_rows_they_look_for(tmp_path: Path) -> None:
    saved = concept()
    embedding_io.save(saved, tmp_path / "a_ti.safetensors")
    found = safetensors.numpy.load_file(tmp_path / "a_ti.safetensors")
    assert sorted(found) == ["clip_g", "clip_l"]
    assert np.array_equal(found["clip_l"], saved.vectors["clip_l"])
    assert np.array_equal(found["clip_g"], saved.vectors["clip_g"])


def test_a_file_of_another_program_is_called_after_its_file(tmp_path: Path) -> None:
    saved = concept()
    rows = {"clip_l": saved.vectors["clip_l"].astype(np.float16), "clip_g": saved.vectors["clip_g"]}
    safetensors.numpy.save_file(rows, tmp_path / "my cat.safetensors")
    found = embedding_io.load(tmp_path / "my cat.safetensors")
    assert (found.placeholder_token, found.num_vectors, found.pooling) == ("my cat", 2, "end_of_text")
    np.testing.assert_allclose(found.vectors["clip_l"], saved.vectors["clip_l"], rtol=1e-3)


@pytest.mark.parametrize(("kept", "encoder"), [("clip_g", "CLIP-L"), ("clip_l", "OpenCLIP bigG")])
def test_a_safetensors_file_of_one_encoder_is_refused(tmp_path: Path, kept: str, encoder: str) -> None:
    safetensors.numpy.save_file({kept: concept().vectors["clip_l"]}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=f"lacks the rows of {encoder}"):
        embedding_io.load(tmp_path / "a.safetensors")


def test_mindspore_reads_the_file_as_mindone_does(tmp_path: Path) -> None:
    saved = concept()
    embedding_io.save(saved, tmp_path / "a_ti.ckpt")
    found = ms.load_checkpoint(str(tmp_path / "a_ti.ckpt"))
    assert list(found)[:4] == [CLIP_L_TABLE, CLIP_G_TABLE, "placeholder_token", "num_vectors"]
    assert found["placeholder_token"] == "<toy>"
    assert int(found["num_vectors"]) == 2
    assert np.array_equal(found[CLIP_G_TABLE].asnumpy(), saved.vectors["clip_g"])


def test_a_file_as_mindone_writes_it_loads_and_counts_as_pooled_at_the_placeholder(tmp_path: Path) -> None:
    rows = concept()
    entries = [
        {"name": CLIP_L_TABLE, "data": Tensor(rows.vectors["clip_l"], ms.float16)},
        {"name": CLIP_G_TABLE, "data": Tensor(rows.vectors["clip_g"])},
    ]
    path = tmp_path / "SDXL_ti.ckpt"
    ms.save_checkpoint(entries, str(path), append_dict={"placeholder_token": "<cat-toy>", "num_vectors": 2})
    found = embedding_io.load(path)
    assert (found.placeholder_token, found.num_vectors, found.pooling) == ("<cat-toy>", 2, "argmax")
    assert found.vectors["clip_l"].dtype == np.float32
    np.testing.assert_allclose(found.vectors["clip_l"], rows.vectors["clip_l"], rtol=1e-3)


def save_without(path: Path, *left_out: str, **changed: np.ndarray) -> None:
    rows = concept()
    tensors = {CLIP_L_TABLE: rows.vectors["clip_l"], CLIP_G_TABLE: rows.vectors["clip_g"]} | {
        getattr(formats, k): v for k, v in changed.items()
    }
    entries = [{"name": n, "data": Tensor(t)} for n, t in tensors.items() if n not in left_out]
    word = {} if "placeholder_token" in left_out else {"placeholder_token": "<toy>"}
    entries = entries or [{"name": "other", "data": Tensor(rows.vectors["clip_l"])}]
    ms.save_checkpoint(entries, str(path), append_dict={**word, "num_vectors": 2})


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ([CLIP_L_TABLE, CLIP_G_TABLE], "is no embedding file: it holds no token rows"),
        ([CLIP_L_TABLE], "lacks the rows of CLIP-L, text encoder 1; SDXL needs both"),
        ([CLIP_G_TABLE], "lacks the rows of OpenCLIP bigG, text encoder 2"),
        (["placeholder_token"], "does not say which word it stands for"),
    ],
)
def test_what_a_file_lacks_is_named(tmp_path: Path, left_out: list[str], message: str) -> None:
    save_without(tmp_path / "a.ckpt", *left_out)
    with pytest.raises(UserError, match=message):
        embedding_io.load(tmp_path / "a.ckpt")


def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    save_without(tmp_path / "a.ckpt", CLIP_G_TABLE=np.zeros((3, 24), np.float32))
    with pytest.raises(UserError, match=r"holds rows \[2, 16\] and \[3, 24\]; both need"):
        embedding_io.load(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"details": "{no json"}, "holds a note, details, that is no JSON .*: the file is damaged"),
        ({"pooling": "mean"}, "under the pooling rule 'mean', which is not known"),
    ],
)
def test_entries_that_make_no_sense_are_refused(tmp_path: Path, entry: dict[str, str], message: str) -> None:
    rows = concept()
    tensors = [
        {"name": CLIP_L_TABLE, "data": Tensor(rows.vectors["clip_l"])},
        {"name": CLIP_G_TABLE, "data": Tensor(rows.vectors["clip_g"])},
    ]
    ms.save_checkpoint(tensors, str(tmp_path / "a.ckpt"), append_dict={"placeholder_token": "<toy>", **entry})
    with pytest.raises(UserError, match=message):
        embedding_io.load(tmp_path / "a.ckpt")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("encoder", [0, 1])
def test_rows_that_are_no_numbers_are_refused(tmp_path: Path, encoder: int, value: float) -> None:
    made = concept()
    (made.vectors["clip_l"], made.vectors["clip_g"])[encoder][1, 3] = value
    embedding_io.save(made, tmp_path / "a.ckpt")
    with pytest.raises(
        UserError, match=r"a\.ckpt holds rows that are no finite numbers: it is damaged, or its training diverged"
    ):
        embedding_io.load(tmp_path / "a.ckpt")


def test_no_other_kind_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.ckpt, or in \.safetensors"):
        embedding_io.save(concept(), tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_joined_concepts_keep_their_rows_at_their_ids() -> None:
    one, two = concept("<one>", 2, 1), concept("<two>", 3, 2)
    joined = combine([one, two], CONFIG)
    ids = joined.tokenizer.encode("<two> and <one>")
    rows = joined.vectors["clip_l"][[i - 49408 for i in ids if i >= 49408]]
    assert np.array_equal(rows, np.concatenate([two.vectors["clip_l"], one.vectors["clip_l"]]))
    assert joined.vectors["clip_g"].shape == (5, 24)


def test_no_concept_is_no_placeholder() -> None:
    joined = combine([], CONFIG)
    assert joined.tokenizer.placeholders == {}
    assert joined.vectors["clip_l"].shape == (1, 16)


def test_concepts_that_share_a_placeholder_are_refused() -> None:
    with pytest.raises(UserError, match="<TOY>"):
        combine([concept("<toy>"), concept("<TOY>")], CONFIG)


def test_a_concept_of_another_model_is_refused() -> None:
    other = Embedding("<toy>", {"clip_l": np.zeros((1, 768), np.float32), "clip_g": np.zeros((1, 1280), np.float32)})
    with pytest.raises(UserError, match=r"vectors of 768 and 1280 values, the model's have 16 and 24: .*another model"):
        combine([other], CONFIG)


def test_an_initializer_without_words_is_refused() -> None:
    for empty in ("", "  ", "\u200b "):
        if Tokenizer().encode(empty):
            continue
        with pytest.raises(UserError, match="holds no word; give one, or leave it out for random rows"):
            init.token_ids(empty, Tokenizer())


def test_random_rows_follow_each_columns_mean_and_spread() -> None:
    table = np.random.default_rng(0).standard_normal((500, 6)) * [1, 2, 3, 4, 5, 6] + [9, 0, 0, 0, 0, -9]
    rows = init.random(table.astype(np.float32), 4000, 1, 1)
    np.testing.assert_allclose(rows.mean(0), table.mean(0), atol=0.4)
    np.testing.assert_allclose(rows.std(0), table.std(0), rtol=0.06)
    assert not np.allclose(rows, init.random(table, 4000, 2, 1))
    assert not np.allclose(rows, init.random(table, 4000, 1, 2))
