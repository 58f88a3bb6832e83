"""tools/convert_weights/embedding.py as a user calls it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gm.embeddings import io as embedding_io
from gm.embeddings import merging
from gm.embeddings.embedding import NO_POOLING, Embedding
from gm.embeddings.interpolation import slerp
from gm.errors import UserError
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


def test_merge_writes_several_embeddings_into_one_file(
    embedding: Call, toy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dog, target = save_dog(tmp_path, pooling="argmax"), tmp_path / "learned_embeds.safetensors"
    assert embedding("merge", "--source", toy, dog, "--target", target, "--format", "diffusers")[0] == 0
    assert (
        f"{target} holds several embeddings, as diffusers' learned_embeds never do; only this toolkit reads it"
        in caplog.text
    )
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
    assert f"two files have the placeholder token <toy>, {toy} and {duplicate}; rename one" in error
    assert embedding(*arguments, "--placeholder_token", "<toy>", "<other>")[0] == 0


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("in/merged", ["in/merged/toy.safetensors", "in/merged/dog.safetensors"]),
        ("both.safetensors", ["both-toy.safetensors", "both-dog.safetensors"]),
        ("both.ckpt", ["both-toy.ckpt", "both-dog.ckpt"]),
    ],
)
def test_merge_writes_one_file_an_embedding_that_other_programs_read(
    embedding: Call, toy: Path, tmp_path: Path, target: str, expected: list[str]
) -> None:
    dog = save_dog(tmp_path, pooling="argmax")
    paths = [tmp_path / each for each in expected]
    code, out, _ = embedding("merge", "--source", toy, dog, "--target", tmp_path / target)
    assert (code, out) == (0, "".join(f"wrote {path}\n" for path in paths))
    for path, source in zip(paths, (toy, dog), strict=True):
        written, before = embedding_io.load(path), embedding_io.load(source)
        assert (written.placeholder_token, written.pooling) == (before.placeholder_token, before.pooling)
        assert written.metadata == before.metadata
        assert all(np.array_equal(written.vectors[name], before.vectors[name]) for name in ("clip_l", "clip_g"))
        if path.suffix == ".safetensors":
            assert sorted(load_file(path)) == ["clip_g", "clip_l"]
    code, _, error = embedding("merge", "--source", dog, toy, "--target", tmp_path / target)
    assert (code, error) == (2, f"error: --target {paths[1]} already exists; --overwrite replaces it\n")


def test_merge_names_embeddings_by_their_files(embedding: Call, tmp_path: Path) -> None:
    arrays = {"clip_l": np.ones((1, 16), np.float32), "clip_g": np.ones((1, 24), np.float32)}
    sources = [tmp_path / "My Toy v2.safetensors", tmp_path / "cat.safetensors", tmp_path / "mytoy.safetensors"]
    for source in sources:
        save_file(arrays, source)
    assert embedding("merge", "--source", *sources, "--target", tmp_path / "out")[0] == 0
    found = {path.name: embedding_io.load(path).placeholder_token for path in (tmp_path / "out").iterdir()}
    assert found == {"My-Toy-v2.safetensors": "<My-Toy-v2>", "cat.safetensors": "<cat>", "mytoy.safetensors": "mytoy"}
    pair = tmp_path / "learned_embeds.safetensors"
    assert embedding("convert", "--source", sources[0], "--target", pair, "--format", "diffusers")[0] == 0
    assert list(load_file(pair)) == ["<My-Toy-v2>"]


def test_merge_gives_embeddings_of_sd15_a_format_of_theirs(embedding: Call, tmp_path: Path) -> None:
    for name in ("one-toy", "two-toy"):
        save_file({"emb_params": np.ones((1, 768), np.float32)}, tmp_path / f"{name}.safetensors")
    sources = [tmp_path / "one-toy.safetensors", tmp_path / "two-toy.safetensors"]
    assert embedding("merge", "--source", *sources, "--target", tmp_path / "out")[0] == 0
    assert list(load_file(tmp_path / "out" / "two-toy.safetensors")) == ["emb_params"]


def test_embeddings_with_similar_tokens_get_a_file_each(embedding: Call, toy: Path, tmp_path: Path) -> None:
    dog, out = save_dog(tmp_path, "{toy}"), tmp_path / "out"
    assert embedding("merge", "--source", toy, dog, "--target", out)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["toy-2.safetensors", "toy.safetensors"]


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert"], "--source is missing"),
        (["convert", "--source", "@toy"], "--target is missing"),
        (["convert", "--source", "@toy", "--target", "@a.txt"], "must end in .ckpt"),
        (
            ["convert", "--source", "@toy", "--target", "@a.pt"],
            "holds vectors of one text encoder, that of Stable",
        ),
        (["convert", "--source", "@toy", "--target", "@a.pti", "--format", "pti"], "invalid choice: 'pti'"),
        (["inspect", "--source", "@nowhere"], "is not a file"),
        (["inspect", "--source", "@toy", "--weight", "@toy2"], "is not a file"),
        (["inspect", "--source", "@toy", "--words", "3"], "unknown argument --words"),
        (["inspect", "--source", "@toy", "@toy"], "inspect takes one --source; merge and mix take several"),
        (["merge", "--source", "@toy", "@toy", "--target", "@out"], "--source has a file twice"),
        (["merge", "--source", "@toy", "--target", "@out.txt"], "out.txt must be a folder or end in .ckpt"),
        (["convert", "--source", "@toy", "--placeholder_token", "<a>", "<b>"], "as many --placeholder_token as"),
        (
            ["convert", "--source", "@toy", "--target", "@a.ckpt", "--weights", "2"],
            "convert does not take --weights",
        ),
        (
            ["convert", "--source", "@toy", "--target", "@a.ckpt", "--weight", "@w"],
            "convert does not take --weight;",
        ),
        (
            ["inspect", "--source", "@toy", "--target", "@a", "--overwrite"],
            "does not take --overwrite, --target;",
        ),
        (["mix", "--source", "@toy", "--target", "@a.ckpt", "--format", "clip"], "mix does not take --format; leave"),
    ],
)
def test_a_mistake_is_reported_in_one_line(embedding: Call, toy: Path, arguments: list[str], message: str) -> None:
    arguments = [each.replace("@toy", str(toy)).replace("@", f"{toy.parent}/") for each in arguments]
    code, _, error = embedding(*arguments)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_the_command_of_merge_embeddings_merges(embedding: Call, toy: Path, tmp_path: Path) -> None:
    dog, target = save_dog(tmp_path), tmp_path / "both.safetensors"
    code, out, error = embedding("--manager_ckpts", toy, dog, "--output_path", target, "-sd")
    assert code == 0, error
    written = [line.removeprefix("wrote ") for line in out.splitlines()]
    assert [embedding_io.load(path).placeholder_token for path in written] == ["<toy>", "<dog>"]
    again = embedding("merge", "--manager_ckpts", toy, dog, "--output_path", tmp_path / "folder")
    assert again[0] == 0, again[2]
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"toy.safetensors", "dog.safetensors"}
