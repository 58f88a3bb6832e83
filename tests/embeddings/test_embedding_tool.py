"""tools/convert_weights/embedding.py as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gm.embeddings import io as embedding_io
from tests.embeddings.samples import save_dog
from tests.project import Call, Workshop


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
