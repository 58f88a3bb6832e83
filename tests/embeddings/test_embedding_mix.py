"""tools/convert_weights/embedding.py mix: weighted sums and slerp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gm.embeddings import io as embedding_io
from gm.embeddings import merging
from gm.embeddings.embedding import NO_POOLING, Embedding
from gm.embeddings.interpolation import slerp
from gm.errors import UserError
from tests.embeddings.samples import save_dog
from tests.project import Call


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


def test_mix_by_slerp_turns_directions_and_keeps_norms(embedding: Call, toy: Path, tmp_path: Path) -> None:
    dog, target = save_dog(tmp_path), tmp_path / "mixed_ti.ckpt"
    flags = ("--weights", "0.7", "0.3", "--method", "slerp", "--target", target)
    assert embedding("mix", "--source", toy, dog, *flags)[0] == 0
    mixed, first, second = (embedding_io.load(path) for path in (target, toy, dog))
    for encoder, vectors in mixed.vectors.items():
        norms = [np.linalg.norm(each.vectors[encoder], axis=1, keepdims=True) for each in (first, second)]
        norm = 0.7 * norms[0] + 0.3 * norms[1]
        units = [each.vectors[encoder] / own for each, own in zip((first, second), norms, strict=True)]
        np.testing.assert_allclose(vectors, norm * slerp(*units, 0.3), rtol=1e-4, atol=1e-5)
    assert mixed.metadata["mix_method"] == "slerp"


@pytest.mark.parametrize(
    ("weights", "scale", "message"),
    [
        ((-1.0, 2.0), 0.1, "the --weights -1 2 leave slerp a norm below 0"),
        ((1.0, 1.0), -1.0, "lie opposite each other"),
    ],
)
def test_slerp_refuses_vectors_without_a_way_between(weights: tuple[float, float], scale: float, message: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    pair = [Embedding(token, {"clip_l": factor * vectors}) for token, factor in (("<a>", 1.0), ("<b>", scale))]
    with pytest.raises(UserError, match=message):
        merging.mix(pair, weights, "<c>", "slerp")


def test_a_mixture_keeps_what_its_sources_agree_on(embedding: Call, tmp_path: Path) -> None:
    paths = []
    for number, step in enumerate((7, 8)):
        recipe = {"concept": {"placeholder_token": "<a>", "initializer_token": "dog"}}
        metadata = {
            "step": step,
            "base_model": "abc",
            "modelspec.architecture": "stable-diffusion-v1/textual-inversion",
            "recipe": recipe,
            "modelspec.author": f"author {number}",
        }
        vectors = {"clip_l": np.random.default_rng(number).standard_normal((1, 768)).astype(np.float32)}
        paths.append(tmp_path / f"{number}.safetensors")
        embedding_io.save(Embedding("<a>", vectors, NO_POOLING, metadata), paths[-1])
    target = tmp_path / "mixed.safetensors"
    code, _, error = embedding("mix", "--source", *paths, "--target", target)
    assert code == 0, error
    mixed = embedding_io.load(target, None)
    assert mixed.pooling == NO_POOLING  # it is an embedding of Stable Diffusion 1 still
    kept = {key: value for key, value in mixed.metadata.items() if key != "mixed"}
    architecture = "stable-diffusion-v1/textual-inversion"
    assert kept == {"base_model": "abc", "modelspec.architecture": architecture, "class_word": "dog"}
    assert [part["details"]["modelspec.author"] for part in mixed.metadata["mixed"]] == ["author 0", "author 1"]
    sdxl = save_dog(tmp_path)
    code, _, error = embedding("mix", "--source", target, sdxl, "--target", tmp_path / "no.ckpt")
    assert code == 2
    assert "<a> and <dog> are embeddings of Stable Diffusion 1 and SDXL; only those of one family" in error


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
        ({}, ("--method", "slerp", "--weights", "1", "-1"), "slerp needs --weights with a sum above 0, and it is 0"),
        ({}, ("--method", "cubic"), "invalid choice: 'cubic'"),
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
