"""Uploaded embedding files: their placeholder tokens, diffusers' pairs, and rejection of everything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save as safetensors
from safetensors.numpy import save_file

from demo.app.server import embedding_list, embedding_uploads
from demo.app.server.embedding_uploads import store_embedding, store_embeddings
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.errors import UserError

CLIP_L, CLIP_G = np.ones((2, 4), np.float32), np.full((2, 6), 2.0, np.float32)


def vectors() -> dict[str, np.ndarray]:
    return {"clip_l": CLIP_L, "clip_g": CLIP_G}


def diffusers_pair(token: str = "<toy>", step: str = "", value: float = 1.0) -> list[tuple[str, bytes]]:
    return [
        (f"learned_embeds{step}.safetensors", safetensors({token: value * CLIP_L})),
        (f"learned_embeds_2{step}.safetensors", safetensors({token: value * CLIP_G})),
    ]


def test_embedding_without_a_placeholder_token_takes_the_file_name(tmp_path: Path) -> None:
    path = store_embedding(safetensors(vectors()), "../../my cat!.safetensors", tmp_path)
    (embedding,) = embedding_io.load_all(path)
    assert embedding.placeholder_token == "<my-cat>"
    assert np.array_equal(embedding.vectors["clip_g"], vectors()["clip_g"])
    assert path.parent == tmp_path
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["My Toy v2.safetensors", "cat.pt", "mytoy.safetensors", "C:\\my files\\mytoy.bin"])
def test_a_file_has_the_token_that_it_has_on_the_command_line(tmp_path: Path, name: str) -> None:
    content = safetensors(vectors())
    local = tmp_path / name.split("\\")[-1]
    local.write_bytes(content)
    stored = embedding_io.load(store_embedding(content, name, tmp_path / "in"))
    assert stored.placeholder_token == embedding_io.load(local).placeholder_token


def test_the_same_content_under_two_names_is_two_embeddings(tmp_path: Path) -> None:
    content = safetensors(vectors())
    first = store_embedding(content, "mytoy.safetensors", tmp_path)
    second, again = store_embeddings([(f"{name}.safetensors", content) for name in ("badhands", "mytoy")], tmp_path)
    assert again == first
    assert embedding_io.load(first).placeholder_token == "mytoy"
    assert embedding_io.load(second).placeholder_token == "badhands"
    assert set(embedding_list.find_embeddings(tmp_path)) == {"mytoy", "badhands"}


def test_embedding_with_a_placeholder_token_keeps_it(tmp_path: Path) -> None:
    embedding_io.save(Embedding("<toy>", vectors()), tmp_path / "mine.ckpt")
    content = (tmp_path / "mine.ckpt").read_bytes()
    path = store_embedding(content, "other.ckpt", tmp_path / "in")
    assert embedding_io.load(path).placeholder_token == "<toy>"
    assert path.read_bytes() == content
    assert path.name != "other.ckpt"


def test_the_two_files_of_diffusers_are_one_embedding(tmp_path: Path) -> None:
    first, second = diffusers_pair()
    for files in ([first, second], [second, first], [first, second, first]):
        (path,) = store_embeddings(files, tmp_path)
        embedding = embedding_io.load(path)
        assert (embedding.placeholder_token, embedding.pooling) == ("<toy>", "argmax")
        assert np.array_equal(embedding.vectors["clip_l"], CLIP_L)
        assert np.array_equal(embedding.vectors["clip_g"], CLIP_G)
        assert path.read_bytes() == first[1]
    assert list(embedding_list.find_embeddings(tmp_path).values()) == [path]


def test_pairs_are_found_by_their_tokens_and_steps(tmp_path: Path) -> None:
    files = [
        *diffusers_pair(step="-steps-500", value=3.0),
        *diffusers_pair(step="-steps-1000", value=4.0),
        *((name.replace(".", " (1)."), content) for name, content in diffusers_pair("<hat>", value=5.0)),
        ("mine.safetensors", safetensors(vectors())),
    ]
    embeddings = [embedding_io.load(path) for path in store_embeddings(files[::-1], tmp_path)]
    found = {(each.placeholder_token, *(each.vectors[name][0, 0] for name in vectors())) for each in embeddings}
    assert found == {("<toy>", 3.0, 6.0), ("<toy>", 4.0, 8.0), ("<hat>", 5.0, 10.0), ("<mine>", 1.0, 2.0)}


def test_a_token_identifier_names_the_embedding_of_a_pair(tmp_path: Path) -> None:
    pair = [
        ("mytoy.safetensors", safetensors({"clip_l": CLIP_L})),
        ("mytoy_2.safetensors", safetensors({"clip_g": CLIP_G})),
    ]
    identifier = [("token_identifier.txt", b"<cat-toy>"), ("type_of_concept.txt", b"object")]
    (named,) = store_embeddings([*pair, *identifier], tmp_path)
    (unnamed,) = store_embeddings(pair, tmp_path)
    assert embedding_io.load(named).placeholder_token == "<cat-toy>"
    assert embedding_io.load(unnamed).placeholder_token == "mytoy"


def test_rejected_embeddings_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"x", b"\x89PNG", safetensors({"emb_params": CLIP_L}), b""):
        with pytest.raises(UserError, match=r"a\.safetensors") as caught:
            store_embeddings([("good.safetensors", safetensors(vectors())), ("a.safetensors", content)], tmp_path)
        assert str(tmp_path) not in str(caught.value)
    monkeypatch.setattr(embedding_uploads, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="the embedding file a has 0 MB; upload at most 0 MB"):
        store_embedding(safetensors(vectors()), "a", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            diffusers_pair()[:1],
            "learned_embeds.safetensors lacks the vectors of OpenCLIP bigG.*, upload both together",
        ),
        (diffusers_pair() + diffusers_pair(value=2.0), "hold the same placeholder token for the same text encoder"),
        (diffusers_pair()[:1] + diffusers_pair(value=2.0)[:1], "upload one learned_embeds.safetensors and one"),
        ([("token_identifier.txt", b"<toy>")], "no embedding file was uploaded"),
    ],
)
def test_files_that_are_no_pair_are_refused(tmp_path: Path, files: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        store_embeddings(files, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("family", "encoder", "width"), [("sd1", "clip_l", 768), ("sd2", "clip_h", 1024)])
def test_embeddings_of_stable_diffusion_are_stored_for_its_models_alone(
    tmp_path: Path, family: str, encoder: str, width: int
) -> None:
    array = np.ones((2, width), np.float32)
    uploads = [
        ("mine.safetensors", safetensors({encoder: array})),
        ("kohya.safetensors", safetensors({"emb_params": array})),
        ("learned_embeds.safetensors", safetensors({"<toy>": array})),
    ]
    paths = store_embeddings(uploads, tmp_path, family)
    loaded = [embedding_io.load(path, family) for path in paths]
    assert [embedding.placeholder_token for embedding in loaded] == ["<mine>", "kohya", "<toy>"]
    assert all(list(embedding.vectors) == [encoder] for embedding in loaded)
    for upload in uploads[1:]:  # the first may be one encoder of SDXL
        with pytest.raises(UserError, match=r"another model|SDXL"):
            store_embeddings([upload], tmp_path)


@pytest.mark.parametrize("token", ["a\0b", "\u202eyot", "<" * 10**6], ids=["null", "reversed", "megabyte"])
def test_names_that_no_page_should_show_are_refused(tmp_path: Path, token: str) -> None:
    path = tmp_path / "a.safetensors"
    both = {"clip_l": np.ones((1, 768), np.float32), "clip_g": np.ones((1, 1280), np.float32)}
    save_file(both, path, {"placeholder_token": token})
    with pytest.raises(UserError, match=r"toy\.safetensors: placeholder .*(cannot be printed|has 1000000)") as caught:
        embedding_uploads.store_embedding(path.read_bytes(), "toy.safetensors", tmp_path / "in")
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize(("token", "usable"), [("cat", "<cat>"), ("my toy", "<my-toy>"), ("![x](http://a/b)", None)])
def test_other_names_are_made_placeholder_tokens(tmp_path: Path, token: str, usable: str | None) -> None:
    path = tmp_path / "a.safetensors"
    both = {"clip_l": np.ones((1, 768), np.float32), "clip_g": np.ones((1, 1280), np.float32)}
    save_file(both, path, {"placeholder_token": token})
    stored = embedding_uploads.store_embedding(path.read_bytes(), "toy.safetensors", tmp_path / "in")
    (embedding,) = embedding_io.load_all(stored)
    assert embedding.placeholder_token == (usable or token)
