"""tools/convert_weights/embedding.py as a user calls it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from tests.project import Call, Workshop

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


def save_dog(folder: Path, token: str = "<dog>", num_vectors: int = 2, pooling: str = "end_of_text") -> Path:
    vectors = {
        encoder: np.random.default_rng(9 + width).standard_normal((num_vectors, width)).astype(np.float32)
        for encoder, width in (("clip_l", 16), ("clip_g", 24))
    }
    embedding_io.save(Embedding(token, vectors, pooling), folder / "dog_ti.ckpt")
    return folder / "dog_ti.ckpt"


def test_convert_keeps_metadata(embedding: Call, toy: Path, tmp_path: Path) -> None:
    target = tmp_path / "toy.safetensors"
    assert embedding("convert", "--source", toy, "--target", target) == (0, f"wrote {target}\n", "")
    assert sorted(load_file(target)) == ["clip_g", "clip_l"]
    again = tmp_path / "again_ti.ckpt"
    assert embedding("convert", "--source", target, "--target", again)[0] == 0
    before, after = embedding_io.load(toy), embedding_io.load(again)
    assert (after.placeholder_token, after.pooling, after.metadata) == ("<toy>", "end_of_text", {"step": 7})
    assert np.array_equal(before.vectors["clip_g"], after.vectors["clip_g"])
    pair = tmp_path / "learned_embeds.safetensors"
    code, out, _ = embedding("convert", "--source", toy, "--target", pair, "--format", "diffusers")
    assert (code, out.count("wrote")) == (0, 2)
    assert list(load_file(tmp_path / "learned_embeds_2.safetensors")) == ["<toy>"]
    back = tmp_path / "back_ti.ckpt"
    assert embedding("convert", "--source", pair, "--target", back, "--placeholder_token", "<other>")[0] == 0
    assert embedding_io.load(back).placeholder_token == "<other>"


def test_an_existing_target_needs_overwrite(embedding: Call, toy: Path, tmp_path: Path) -> None:
    for target, flags in (("mine.safetensors", ()), ("learned_embeds.safetensors", ("--format", "diffusers"))):
        path = tmp_path / target
        existing = tmp_path / "learned_embeds_2.safetensors" if flags else path
        existing.write_text("mine")
        code, _, error = embedding("convert", "--source", toy, "--target", path, *flags)
        assert code == 2
        assert error == f"error: --target {existing} already exists; --overwrite replaces it\n"
        assert existing.read_text() == "mine"
        assert embedding("convert", "--source", toy, "--target", path, *flags, "--overwrite")[0] == 0


def test_inspect_prints_the_contents_of_a_file(embedding: Call, toy: Path, workshop: Workshop) -> None:
    weight = workshop.folder / "weights.ckpt"
    code, out, _ = embedding("inspect", "--source", toy, "--weight", weight)
    assert code == 0
    contents = json.loads(out)
    assert (contents["format"], contents["pooling"]) == ("mindspore", "end_of_text")
    assert contents["metadata"]["details"] == {"step": 7}
    for encoder, vectors in embedding_io.load(toy).vectors.items():
        description = contents["embeddings"]["<toy>"][encoder]
        assert (description["vectors"], description["width"]) == vectors.shape
        np.testing.assert_allclose(description["norms"], np.linalg.norm(vectors, axis=1), atol=1e-4)
        assert [len(tokens) for tokens in description["nearest"]] == [5, 5]
    assert "nearest" not in embedding("inspect", "--source", toy)[1]


def test_merge_writes_several_embeddings_into_one_file(embedding: Call, toy: Path, tmp_path: Path) -> None:
    dog, target = save_dog(tmp_path, pooling="argmax"), tmp_path / "learned_embeds.safetensors"
    assert embedding("merge", "--source", toy, dog, "--target", target)[0] == 0
    second, first = embedding_io.load_all(target)  # safetensors sorts by key
    assert (first.placeholder_token, second.placeholder_token) == ("<toy>", "<dog>")
    for merged, path, rule, metadata in (
        (first, toy, "end_of_text", {"step": 7}),
        (second, dog, "argmax", {}),
    ):
        assert (merged.pooling, merged.metadata) == (rule, metadata)
        for encoder, vectors in embedding_io.load(path).vectors.items():
            assert np.array_equal(merged.vectors[encoder], vectors)
    contents = json.loads(embedding("inspect", "--source", target)[1])
    assert contents["pooling"] == {"<toy>": "end_of_text", "<dog>": "argmax"}
    duplicate = save_dog(tmp_path, "<TOY>", num_vectors=3)
    arguments = ("merge", "--source", toy, duplicate, "--target", tmp_path / "both.safetensors")
    code, _, error = embedding(*arguments)
    assert code == 2
    assert "two files have the placeholder token <toy>; rename one" in error
    assert embedding(*arguments, "--placeholder_token", "<toy>", "<other>")[0] == 0


@pytest.mark.parametrize(
    ("weights", "expected"), [(None, (0.5, 0.5)), (("0.8", "0.2"), (0.8, 0.2)), (("1", "-1"), (1, -1))]
)
def test_mix_writes_the_weighted_sum(
    embedding: Call, toy: Path, tmp_path: Path, weights: tuple[str, str] | None, expected: tuple[float, float]
) -> None:
    dog, target = save_dog(tmp_path), tmp_path / "mixed_ti.ckpt"
    flags = ("--weights", *weights) if weights else ()
    token = ("--placeholder_token", "<toy-dog>")
    assert embedding("mix", "--source", toy, dog, "--target", target, *flags, *token)[0] == 0
    mixed, first, second = (embedding_io.load(path) for path in (target, toy, dog))
    assert mixed.placeholder_token == "<toy-dog>"
    assert list(mixed.vectors) == ["clip_l", "clip_g"]
    for encoder, vectors in mixed.vectors.items():
        weighted = expected[0] * first.vectors[encoder] + expected[1] * second.vectors[encoder]
        np.testing.assert_allclose(vectors, weighted, rtol=1e-5, atol=1e-6)
    parts = [(part["word"], part["weight"]) for part in mixed.metadata["mixed"]]
    assert parts == [("<toy>", expected[0]), ("<dog>", expected[1])]
    assert mixed.metadata["mixed"][0]["details"] == {"step": 7}


def test_mix_scales_a_single_embedding(embedding: Call, toy: Path, tmp_path: Path) -> None:
    target = tmp_path / "more_ti.ckpt"
    assert embedding("mix", "--source", toy, "--weights", "1.2", "--target", target)[0] == 0
    mixed, vectors = embedding_io.load(target).vectors["clip_l"], embedding_io.load(toy).vectors["clip_l"]
    np.testing.assert_allclose(mixed, 1.2 * vectors, rtol=1e-6)


@pytest.mark.parametrize(
    ("dog", "flags", "message"),
    [
        ({"num_vectors": 3}, (), "<toy> and <dog> have 2 vectors, 16 and 24 wide and 3 vectors"),
        ({"pooling": "argmax"}, (), "trained with the pooling rules end_of_text and argmax"),
        ({}, ("--weights", "1"), "there are 2 embeddings and 1 weights"),
        ({}, ("--placeholder_token", "<a>", "<b>"), "or for mix one"),
    ],
)
def test_embeddings_that_cannot_be_mixed_are_refused(
    embedding: Call, toy: Path, tmp_path: Path, dog: dict, flags: tuple[str, ...], message: str
) -> None:
    target = tmp_path / "mixed_ti.ckpt"
    code, _, error = embedding("mix", "--source", toy, save_dog(tmp_path, **dog), "--target", target, *flags)
    assert code == 2
    assert message in error
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert"], "--source is missing"),
        (["convert", "--source", "@toy"], "--target is missing"),
        (["convert", "--source", "@toy", "--target", "@a.txt"], "must end in .ckpt"),
        (["convert", "--source", "@toy", "--target", "@a.pt"], "holds vectors of CLIP-L alone"),
        (["convert", "--source", "@toy", "--target", "@a.pti", "--format", "pti"], "invalid choice: 'pti'"),
        (["inspect", "--source", "@nowhere"], "is not a file"),
        (["inspect", "--source", "@toy", "--weight", "@toy2"], "is not a file"),
        (["inspect", "--source", "@toy", "--words", "3"], "unknown argument --words"),
        (["inspect", "--source", "@toy", "@toy"], "inspect takes one --source; merge and mix take several"),
        (["convert", "--source", "@toy", "--placeholder_token", "<a>", "<b>"], "as many --placeholder_token as"),
    ],
)
def test_a_mistake_is_reported_in_one_line(embedding: Call, toy: Path, arguments: list[str], message: str) -> None:
    arguments = [each.replace("@toy", str(toy)).replace("@", f"{toy.parent}/") for each in arguments]
    code, _, error = embedding(*arguments)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
