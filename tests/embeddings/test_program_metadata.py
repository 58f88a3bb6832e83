"""Who wrote a file, its pooling rule, and what other programs say of it: read, given and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from gm.embeddings import io as embedding_io
from tests.embeddings.samples import random_embedding, random_vectors
from tests.project import Call

SDXL = "stable-diffusion-xl-v1-base"
KOHYA = {
    "modelspec.architecture": f"{SDXL}/textual-inversion",
    "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
}
PUBLISHED = {
    "modelspec.architecture": f"{SDXL}/textual-inversion",
    "modelspec.author": "me",
    "modelspec.license": "CC0-1.0",
    "modelspec.trigger_phrase": "sks cat",
    "ss_learning_rate": "1e-4",
}


def save(folder: Path, metadata: dict[str, str] | None = None, name: str = "my-toy", **more: np.ndarray) -> Path:
    path = folder / f"{name}.safetensors"
    save_file({**random_vectors(2), **more}, path, metadata)
    return path


def entries(path: Path) -> dict[str, str]:
    with safe_open(path, "np") as file:
        return dict(file.metadata() or {})


@pytest.mark.parametrize(
    ("metadata", "more", "program", "pooling"),
    [
        (None, {}, "unknown: ", "unknown"),
        ({"format": "pt"}, {}, "unknown: ", "unknown"),
        ({"modelspec.architecture": f"{SDXL}/textual-inversion"}, {}, "unknown: ", "unknown"),
        (KOHYA, {}, "kohya's scripts", "end_of_text"),
        (
            {**KOHYA, "modelspec.implementation": "", "modelspec.implementation_version": "sd-scripts/a1b2"},
            {},
            "kohya's scripts",
            "end_of_text",
        ),
        (
            {
                "modelspec.architecture": f"{SDXL}/embedding",
                "modelspec.implementation": "https://github.com/huggingface/diffusers",
            },
            {},
            "OneTrainer",
            "argmax",
        ),
        ({"ot_revision": "a1b2"}, {}, "OneTrainer", "argmax"),
        (None, {"clip_l_out": np.ones((2, 768), np.float32)}, "OneTrainer", "argmax"),
        ({"pooling": "argmax"}, {}, "unknown: ", "argmax"),
    ],
)
def test_a_clip_file_says_which_program_wrote_it(
    embedding: Call,
    tmp_path: Path,
    metadata: dict[str, str] | None,
    more: dict[str, np.ndarray],
    program: str,
    pooling: str,
) -> None:
    path = save(tmp_path, metadata, **more)
    contents = json.loads(embedding("inspect", "--source", path)[1])
    assert contents["program"].startswith(program)
    assert contents["pooling"] == pooling
    assert embedding_io.load(path).pooling == pooling


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("a_ti.ckpt", ()),
        ("learned_embeds.safetensors", ("--format", "diffusers", "--placeholder_token", "<toy>")),
        ("embeddings.pti", ("--format", "cog")),
        ("other.safetensors", ()),
    ],
)
def test_an_unknown_pooling_rule_is_not_written_as_a_fact_and_can_be_given(
    embedding: Call, tmp_path: Path, name: str, flags: tuple[str, ...]
) -> None:
    """The formats written here have a rule of their own where nothing is recorded."""
    source, target = save(tmp_path), tmp_path / name
    assert embedding("convert", "--source", source, "--target", target, *flags)[0] == 0
    assert embedding_io.load(target).pooling == "unknown"
    given = ("--pooling", "end_of_text", "--overwrite")
    assert embedding("convert", "--source", source, "--target", target, *flags, *given)[0] == 0
    assert embedding_io.load(target).pooling == "end_of_text"


def test_a_given_pooling_rule_against_the_files_is_a_warning(embedding: Call, tmp_path: Path) -> None:
    arguments = ("convert", "--source", save(tmp_path, KOHYA), "--target", tmp_path / "a.ckpt", "--pooling", "argmax")
    code, out, _ = embedding(*arguments)
    assert code == 0
    assert "was trained with --pooling end_of_text; the given argmax is taken" in out
    assert embedding_io.load(tmp_path / "a.ckpt").pooling == "argmax"


def test_pooling_rules_are_given_for_all_sources_or_for_each(embedding: Call, tmp_path: Path) -> None:
    sources = (save(tmp_path, name="a"), save(tmp_path, name="b"))
    tokens = ("--placeholder_token", "<a>", "<b>")
    target = tmp_path / "learned_embeds.safetensors"
    merge = ("merge", "--source", *sources, "--target", target, "--format", "diffusers", *tokens, "--overwrite")
    for given, expected in (((), "unknown unknown"), (("argmax",), "argmax argmax"), (("argmax", "end_of_text"),) * 2):
        flags = ("--pooling", *given) if given else ()
        assert embedding(*merge, *flags)[0] == 0
        rules = {each.placeholder_token: each.pooling for each in embedding_io.load_all(target)}
        assert [rules["<a>"], rules["<b>"]] == (expected.split() if isinstance(expected, str) else list(expected))
    code, _, error = embedding(*merge, "--pooling", "argmax", "argmax", "argmax")
    assert (code, "one --pooling for all --source, or as many" in error) == (2, True)


def test_mixing_needs_one_rule_which_can_be_given(embedding: Call, tmp_path: Path) -> None:
    mix = ("mix", "--source", save(tmp_path, name="a"), save(tmp_path, KOHYA, "b"), "--target", tmp_path / "m.ckpt")
    code, _, error = embedding(*mix)
    assert code == 2
    assert "unknown and end_of_text; only embeddings of one rule can be mixed; --pooling gives the rule" in error
    assert embedding(*mix, "--pooling", "end_of_text")[0] == 0
    assert embedding_io.load(tmp_path / "m.ckpt").pooling == "end_of_text"


def test_metadata_of_other_programs_survive_every_conversion(embedding: Call, tmp_path: Path) -> None:
    source = save(tmp_path, PUBLISHED)
    for name, flags in (
        ("a_ti.ckpt", ()),
        ("b.safetensors", ()),
        ("learned_embeds.safetensors", ("--format", "diffusers", "--placeholder_token", "<toy>")),
        ("c.pti", ("--format", "cog")),
    ):
        target = tmp_path / name
        assert embedding("convert", "--source", source, "--target", target, *flags)[0] == 0
        assert embedding_io.load(target).metadata == PUBLISHED
        if target.suffix != ".ckpt":
            assert PUBLISHED.items() <= entries(target).items()
        back = tmp_path / "back.safetensors"
        assert embedding("convert", "--source", target, "--target", back, "--overwrite")[0] == 0
        assert PUBLISHED.items() <= entries(back).items()


def test_metadata_of_other_programs_survive_loading_saving_and_merging(embedding: Call, tmp_path: Path) -> None:
    loaded = embedding_io.load(save(tmp_path, PUBLISHED))
    loaded.metadata["step"] = 7
    embedding_io.save(loaded, tmp_path / "a.safetensors")
    assert PUBLISHED.items() <= entries(tmp_path / "a.safetensors").items()
    assert json.loads(entries(tmp_path / "a.safetensors")["details"]) == {"step": 7}
    embedding_io.save(random_embedding("<other>"), tmp_path / "other.ckpt")
    target = tmp_path / "both.safetensors"
    sources = (tmp_path / "a.safetensors", save(tmp_path, {"modelspec.author": "you"}, "b"))
    flags = ("--target", target, "--format", "diffusers", "--placeholder_token", "<a>", "<b>")
    assert embedding("merge", "--source", *sources, *flags)[0] == 0
    file = embedding_io.read_file(target)
    assert file.other_metadata("<a>") == PUBLISHED
    assert file.other_metadata("<b>") == {"modelspec.author": "you"}


def test_automatic1111s_checkpoint_survives_kohyas_format(tmp_path: Path) -> None:
    said = {"name": "<cat>", "step": 499, "sd_checkpoint": "c6bb", "sd_checkpoint_name": None}
    a1111 = embedding_io.EmbeddingFile("a1111", {"<cat>": random_vectors(encoders=("clip_l",))}, said)
    embedding_io.write_file(a1111, tmp_path / "a.safetensors", "kohya")
    assert {"step": "499", "sd_checkpoint": "c6bb"}.items() <= entries(tmp_path / "a.safetensors").items()
    assert "name" not in entries(tmp_path / "a.safetensors")
    embedding_io.write_file(embedding_io.read_file(tmp_path / "a.safetensors"), tmp_path / "a.pt", "a1111")
    metadata = embedding_io.read_file(tmp_path / "a.pt").metadata
    assert (metadata["step"], metadata["sd_checkpoint"]) == (499, "c6bb")


@pytest.mark.parametrize(("metadata", "lost"), [(PUBLISHED, "modelspec.architecture, modelspec.author"), ({}, "")])
def test_a_pytorch_file_that_cannot_hold_metadata_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, metadata: dict[str, Any], lost: str
) -> None:
    file = embedding_io.EmbeddingFile("clip", {"<toy>": random_vectors()}, dict(metadata))
    embedding_io.write_file(file, tmp_path / "a.pt", "clip")
    assert [lost in message and "cannot hold" in message for message in caplog.messages] == ([True] if lost else [])


def test_inspect_names_what_is_not_used(embedding: Call, tmp_path: Path) -> None:
    path = save(tmp_path, None, t5=np.ones((2, 4096), np.float32))
    code, out, _ = embedding("inspect", "--source", path)
    assert code == 0
    assert json.loads(out)["remarks"] == ["t5 (T5, of Stable Diffusion 3, Flux and others) not used"]
    assert "t5 (T5" in embedding("convert", "--source", path, "--target", tmp_path / "a.ckpt")[1]


def test_an_embedding_of_one_text_encoder_converts_with_what_is_given(embedding: Call, tmp_path: Path) -> None:
    source = tmp_path / "my-toy.safetensors"
    save_file({"clip_g": random_vectors()["clip_g"]}, source, PUBLISHED)
    for target in (tmp_path / "a_ti.ckpt", tmp_path / "b.safetensors"):
        flags = ("--pooling", "argmax", "--placeholder_token", "<toy>")
        assert embedding("convert", "--source", source, "--target", target, *flags)[0] == 0
        (converted,) = embedding_io.load_all(target)
        assert (converted.placeholder_token, converted.pooling, converted.metadata) == ("<toy>", "argmax", PUBLISHED)
        assert list(converted.vectors) == ["clip_g"]
