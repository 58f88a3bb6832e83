"""gm/embeddings/io.py and formats.py: embedding files of any program converted to any other's."""

from __future__ import annotations

from pathlib import Path

import pytest

from gm.config import POOLING_RULES
from gm.embeddings import io as embedding_io
from gm.embeddings.formats import FORMATS, EncoderVectors, Format
from gm.embeddings.io import EmbeddingFile
from gm.errors import UserError
from tests.embeddings.samples import assert_same_vectors, random_vectors

SUFFIXES = {
    "mindspore": ".ckpt",
    "mindspore_sd": ".ckpt",
    "a1111": ".pt",
    "kohya": ".safetensors",
    "clip": ".safetensors",
    "cog": ".pti",
    "roettger": ".pt",
    "diffusers": ".safetensors",
}
BOTH_ENCODERS = ("mindspore", "clip", "cog", "roettger", "diffusers")
CLIP_L_ONLY = ("a1111", "kohya", "diffusers", "mindspore_sd")
BOTH_PAIRS = [(a, b) for a in BOTH_ENCODERS for b in BOTH_ENCODERS]
CLIP_L_PAIRS = [(a, b) for a in CLIP_L_ONLY for b in CLIP_L_ONLY]


def other_rule(format_: Format) -> str:
    """Return a pooling rule that is not the format's own."""
    return next(rule for rule in POOLING_RULES if rule != format_.pooling)


@pytest.mark.parametrize(("first", "second"), [*BOTH_PAIRS, *CLIP_L_PAIRS])
def test_converting_to_any_format_and_back_loses_nothing(tmp_path: Path, first: str, second: str) -> None:
    """Vectors, placeholder token, pooling rule and details are kept."""
    vectors = random_vectors(encoders=("clip_l",) if (first, second) in CLIP_L_PAIRS else ("clip_l", "clip_g"))
    entry = {"pooling": other_rule(FORMATS[second]), "details": '{"step": 7}'}
    file = EmbeddingFile(
        first, {"<cat>": vectors}, {"step": 499, "sd_checkpoint": "c6bb", "sd_checkpoint_name": None} | entry
    )
    for number, format_ in enumerate((first, second, first)):
        paths = embedding_io.write_file(file, tmp_path / f"{number}{SUFFIXES[format_]}", format_)
        assert all(path.exists() for path in paths)
        if len(paths) == 2:  # diffusers' files are recognized as a pair by their names
            for path, name in zip(paths, ("learned_embeds", "learned_embeds_2"), strict=True):
                path.rename(tmp_path / f"{name}.safetensors")
            paths[0] = tmp_path / "learned_embeds.safetensors"
        read = embedding_io.read_file(paths[0])
        assert read.format == format_
        (token,) = read.vectors
        assert "<cat>" in (token, read.metadata.get("placeholder_token"))
        assert read.token_metadata(token) == entry
        assert_same_vectors(read.vectors[token], vectors)
        if format_ == "a1111":
            assert (read.metadata["step"], read.metadata["sd_checkpoint"]) == (499, "c6bb")
        file = EmbeddingFile(format_, {"<cat>": read.vectors[token]}, {**file.metadata, **read.metadata})


@pytest.mark.parametrize(
    ("format_", "vectors", "message"),
    [
        ("a1111", {"<a>": random_vectors()}, "holds vectors of one text encoder, that of Stable Diffusion 1 or 2"),
        ("kohya", {"<a>": random_vectors()}, "holds vectors of one text encoder, that of Stable Diffusion 1 or 2"),
        (
            "clip",
            {"<a>": random_vectors(encoders=("clip_l",))},
            "needs the vectors of all text encoders; those of OpenCLIP bigG",
        ),
        ("roettger", {"<a>": random_vectors(3)}, "holds one vector, and there are 3"),
        (
            "cog",
            {"<a>": random_vectors(), "<b>": random_vectors()},
            "holds one embedding per file, and there are 2",
        ),
        ("diffusers", {None: random_vectors()}, "name their placeholder token; give --placeholder_token"),
    ],
)
def test_an_embedding_that_the_format_cannot_hold_is_refused(
    tmp_path: Path, format_: str, vectors: dict[str | None, EncoderVectors], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        embedding_io.write_file(EmbeddingFile("clip", vectors), tmp_path / f"a{SUFFIXES[format_]}", format_)
    assert list(tmp_path.iterdir()) == []


def test_a_suffix_that_cannot_hold_the_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.ckpt"):
        embedding_io.write_file(EmbeddingFile("clip", {None: random_vectors()}), tmp_path / "a.txt", "clip")
    clip_l = EmbeddingFile("clip", {None: random_vectors(encoders=("clip_l",))})
    with pytest.raises(UserError, match=r"can hold tensors only, and the format needs more; write it as \.pt"):
        embedding_io.write_file(clip_l, tmp_path / "a.safetensors", "a1111")


def test_every_format_is_tested() -> None:
    assert set(SUFFIXES) == set(FORMATS)
