"""gm/embeddings/io.py: embedding files of this toolkit, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import safetensors.numpy
from mindspore import Tensor

from gm.embeddings import formats
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.embeddings.formats import CLIP_G_TABLE, CLIP_L_TABLE
from gm.errors import UserError
from tests.embeddings.samples import assert_same_vectors, random_embedding


def assert_equal(a: Embedding, b: Embedding) -> None:
    assert (a.placeholder_token, a.pooling, a.metadata) == (b.placeholder_token, b.pooling, b.metadata)
    assert_same_vectors(a.vectors, b.vectors)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("num_vectors", [1, 10])
def test_a_saved_embedding_loads_unchanged(tmp_path: Path, num_vectors: int, suffix: str) -> None:
    saved = random_embedding("<ein-schöner-Würfel>", num_vectors)
    embedding_io.save(saved, tmp_path / f"a_ti{suffix}")
    assert_equal(embedding_io.load(tmp_path / f"a_ti{suffix}"), saved)


def test_a_safetensors_file_has_the_keys_of_other_programs(tmp_path: Path) -> None:
    saved = random_embedding()
    embedding_io.save(saved, tmp_path / "a_ti.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "a_ti.safetensors")
    assert sorted(tensors) == ["clip_g", "clip_l"]
    assert np.array_equal(tensors["clip_l"], saved.vectors["clip_l"])
    assert np.array_equal(tensors["clip_g"], saved.vectors["clip_g"])


@pytest.mark.parametrize(
    ("name", "token"), [("my cat", "<my-cat>"), ("My Toy v2", "<My-Toy-v2>"), ("cat", "<cat>"), ("mytoy", "mytoy")]
)
def test_a_file_without_a_placeholder_token_is_named_after_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, token: str
) -> None:
    saved = random_embedding()
    tensors = {"clip_l": saved.vectors["clip_l"].astype(np.float16), "clip_g": saved.vectors["clip_g"]}
    path = tmp_path / f"{name}.safetensors"
    safetensors.numpy.save_file(tensors, path)
    with caplog.at_level("INFO", "gm"):
        loaded = embedding_io.load(path)
    assert (loaded.placeholder_token, loaded.num_vectors, loaded.pooling) == (token, 2, "unknown")
    assert (loaded.source, loaded.name) == (str(path), name)
    np.testing.assert_allclose(loaded.vectors["clip_l"], saved.vectors["clip_l"], rtol=1e-3)
    assert (f"{path}: {name!r} cannot be a placeholder token; write {token} in prompts" in caplog.text) == (
        token != name
    )


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_the_user_chooses_another_placeholder_token(tmp_path: Path, suffix: str) -> None:
    saved = random_embedding("<toy>")
    embedding_io.save(saved, tmp_path / f"a{suffix}")
    loaded = embedding_io.load(f"{tmp_path}/a{suffix}=<other>")
    assert (loaded.placeholder_token, loaded.source) == ("<other>", f"{tmp_path}/a{suffix}")
    assert (loaded.pooling, loaded.metadata) == (saved.pooling, saved.metadata)
    assert_same_vectors(loaded.vectors, saved.vectors)


def test_a_chosen_token_serves_a_checkpoint_without_one_and_no_file_of_several(tmp_path: Path) -> None:
    save_without(tmp_path / "a.ckpt", "placeholder_token")
    assert embedding_io.load(f"{tmp_path}/a.ckpt=<toy>").placeholder_token == "<toy>"
    with pytest.raises(UserError, match=r"none.ckpt is not a file"):
        embedding_io.load(f"{tmp_path}/none.ckpt=<toy>")
    both = {token: random_embedding().vectors["clip_l"] for token in ("<a>", "<b>")}
    for name in ("learned_embeds.safetensors", "learned_embeds_2.safetensors"):
        safetensors.numpy.save_file(both, tmp_path / name)
    with pytest.raises(UserError, match=r'"=<toy>" renames one embedding, and .* holds several \(<a>, <b>\)'):
        embedding_io.load_all(f"{tmp_path}/learned_embeds.safetensors=<toy>")


@pytest.mark.parametrize(("present", "missing"), [("clip_g", "CLIP-L"), ("clip_l", "OpenCLIP bigG")])
def test_a_safetensors_file_of_one_text_encoder_is_refused(tmp_path: Path, present: str, missing: str) -> None:
    safetensors.numpy.save_file({present: random_embedding().vectors["clip_l"]}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=f"lacks the vectors of {missing}"):
        embedding_io.load(tmp_path / "a.safetensors")


def test_mindspore_loads_the_checkpoint_as_mindone_does(tmp_path: Path) -> None:
    saved = random_embedding()
    embedding_io.save(saved, tmp_path / "a_ti.ckpt")
    entries = ms.load_checkpoint(str(tmp_path / "a_ti.ckpt"))
    assert list(entries)[:4] == [CLIP_L_TABLE, CLIP_G_TABLE, "placeholder_token", "num_vectors"]
    assert entries["placeholder_token"] == "<toy>"
    assert int(entries["num_vectors"]) == 2
    assert np.array_equal(entries[CLIP_G_TABLE].asnumpy(), saved.vectors["clip_g"])


def test_mindones_rule_of_loading_takes_our_checkpoint(tmp_path: Path) -> None:
    """Its manager takes every entry but two for a token table, and copies its rows to the end of the network's.

    The rule is that of `TextualInversionManager.load_checkpoint_textual_inversion` and
    `load_textual_inversion_params_into_network` (mindone, gm/modules/textual_inversion/manager.py).
    """
    saved = random_embedding()
    embedding_io.save(saved, tmp_path / "a_ti.ckpt")
    tables = {CLIP_L_TABLE: np.zeros((6, 16), np.float32), CLIP_G_TABLE: np.zeros((6, 24), np.float32)}
    entries = ms.load_checkpoint(str(tmp_path / "a_ti.ckpt"))
    num_vectors, placeholder_token = int(entries.pop("num_vectors").value()), entries.pop("placeholder_token")
    for name, parameter in entries.items():
        rows = parameter.value().asnumpy()  # a string has no value
        tables[name] = np.concatenate([tables[name][: -len(rows)], rows])
    assert (num_vectors, placeholder_token) == (2, "<toy>")
    for name, encoder in ((CLIP_L_TABLE, "clip_l"), (CLIP_G_TABLE, "clip_g")):
        assert np.array_equal(tables[name][4:], saved.vectors[encoder])
        assert not tables[name][:4].any()
    assert embedding_io.load(tmp_path / "a_ti.ckpt").metadata == saved.metadata


def test_mindones_embedding_for_stable_diffusion_is_named(tmp_path: Path) -> None:
    name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.embedding_table"
    entry = {"name": name, "data": Tensor(np.ones((2, 768), np.float32))}
    ms.save_checkpoint([entry], str(tmp_path / "a.ckpt"), append_dict={"placeholder_token": "<a>", "num_vectors": 2})
    with pytest.raises(UserError, match=r"lacks the vectors of OpenCLIP bigG.*probably Stable Diffusion 1"):
        embedding_io.load_all(tmp_path / "a.ckpt")
    assert embedding_io.load(tmp_path / "a.ckpt", "sd1").vectors["clip_l"].shape == (2, 768)


def test_checkpoints_whose_pooling_and_details_are_entries_load(tmp_path: Path) -> None:
    """Earlier versions of this toolkit wrote them so."""
    vectors = random_embedding().vectors
    entries = [
        {"name": key, "data": Tensor(vectors[e])} for key, e in ((CLIP_L_TABLE, "clip_l"), (CLIP_G_TABLE, "clip_g"))
    ]
    appended = {"placeholder_token": "<toy>", "num_vectors": 2, "pooling": "end_of_text", "details": '{"step": 7}'}
    ms.save_checkpoint(entries, str(tmp_path / "a.ckpt"), append_dict=appended)
    loaded = embedding_io.load(tmp_path / "a.ckpt")
    assert (loaded.pooling, loaded.metadata) == ("end_of_text", {"step": 7})


def test_a_checkpoint_of_mindone_loads_and_is_pooled_at_the_placeholder_token(tmp_path: Path) -> None:
    vectors = random_embedding().vectors
    entries = [
        {"name": CLIP_L_TABLE, "data": Tensor(vectors["clip_l"], ms.float16)},
        {"name": CLIP_G_TABLE, "data": Tensor(vectors["clip_g"])},
    ]
    path = tmp_path / "SDXL_ti.ckpt"
    ms.save_checkpoint(entries, str(path), append_dict={"placeholder_token": "<cat-toy>", "num_vectors": 2})
    loaded = embedding_io.load(path)
    assert (loaded.placeholder_token, loaded.num_vectors, loaded.pooling) == ("<cat-toy>", 2, "argmax")
    assert loaded.vectors["clip_l"].dtype == np.float32
    np.testing.assert_allclose(loaded.vectors["clip_l"], vectors["clip_l"], rtol=1e-3)


def save_without(path: Path, *omitted: str, **changed: np.ndarray) -> None:
    """Write a checkpoint of mindone without some entries, or with other tensors."""
    vectors = random_embedding().vectors
    tensors = {CLIP_L_TABLE: vectors["clip_l"], CLIP_G_TABLE: vectors["clip_g"]}
    tensors |= {getattr(formats, name): array for name, array in changed.items()}
    entries = [{"name": key, "data": Tensor(array)} for key, array in tensors.items() if key not in omitted]
    token = {} if "placeholder_token" in omitted else {"placeholder_token": "<toy>"}
    entries = entries or [{"name": "other", "data": Tensor(vectors["clip_l"])}]
    ms.save_checkpoint(entries, str(path), append_dict={**token, "num_vectors": 2})


@pytest.mark.parametrize(
    ("omitted", "message"),
    [
        ([CLIP_L_TABLE, CLIP_G_TABLE], "is not an embedding file: it holds no embedding vectors"),
        ([CLIP_L_TABLE], "lacks the vectors of CLIP-L, text encoder 1; SDXL needs both"),
        ([CLIP_G_TABLE], "lacks the vectors of OpenCLIP bigG, text encoder 2"),
        (["placeholder_token"], "does not name its placeholder token"),
    ],
)
def test_a_missing_entry_is_named(tmp_path: Path, omitted: list[str], message: str) -> None:
    save_without(tmp_path / "a.ckpt", *omitted)
    with pytest.raises(UserError, match=message):
        embedding_io.load(tmp_path / "a.ckpt")


def test_text_encoders_with_different_numbers_of_vectors_are_refused(tmp_path: Path) -> None:
    save_without(tmp_path / "a.ckpt", CLIP_G_TABLE=np.zeros((3, 24), np.float32))
    with pytest.raises(UserError, match=r"holds vectors of shape \[2, 16\] and \[3, 24\]; each text encoder needs"):
        embedding_io.load(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"details": "{no json"}, "holds metadata details that is not JSON .*: the file is damaged"),
        ({"pooling": "mean"}, "with the pooling rule 'mean', which is unknown"),
    ],
)
def test_invalid_metadata_is_refused(tmp_path: Path, entry: dict[str, str], message: str) -> None:
    vectors = random_embedding().vectors
    tensors = [
        {"name": CLIP_L_TABLE, "data": Tensor(vectors["clip_l"])},
        {"name": CLIP_G_TABLE, "data": Tensor(vectors["clip_g"])},
    ]
    ms.save_checkpoint(tensors, str(tmp_path / "a.ckpt"), append_dict={"placeholder_token": "<toy>", **entry})
    with pytest.raises(UserError, match=message):
        embedding_io.load(tmp_path / "a.ckpt")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("encoder", ["clip_l", "clip_g"])
def test_vectors_that_are_not_finite_are_refused(tmp_path: Path, encoder: str, value: float) -> None:
    embedding = random_embedding()
    embedding.vectors[encoder][1, 3] = value
    embedding_io.save(embedding, tmp_path / "a.ckpt")
    with pytest.raises(
        UserError, match=r"a\.ckpt holds vectors that are not finite: the file is damaged, or its training diverged"
    ):
        embedding_io.load(tmp_path / "a.ckpt")


def test_other_suffixes_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.ckpt, or in \.safetensors"):
        embedding_io.save(random_embedding(), tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []
