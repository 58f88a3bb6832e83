"""gm/embeddings/metadata.py: pooling rule and details in files that may not hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gm.embeddings import io as embedding_io
from gm.embeddings.formats import FORMATS, EncoderVectors
from gm.embeddings.io import EmbeddingFile
from gm.errors import UserError
from tests.embeddings.samples import SDXL_WIDTHS


def constant_vectors(num_vectors: int = 1, encoders: tuple[str, ...] = ("clip_l", "clip_g")) -> EncoderVectors:
    return {encoder: np.full((num_vectors, SDXL_WIDTHS[encoder]), 0.5, np.float32) for encoder in encoders}


@pytest.mark.parametrize("format_", FORMATS)
def test_a_file_without_a_pooling_rule_has_that_of_its_format_and_keeps_it(tmp_path: Path, format_: str) -> None:
    """A pickle need not hold the rule of its program; a file converted from it does."""
    clip_l_only = format_ in ("a1111", "kohya", "mindspore_sd")
    vectors = constant_vectors(encoders=("clip_l",) if clip_l_only else ("clip_l", "clip_g"))
    target = "diffusers" if format_ != "diffusers" else "kohya" if clip_l_only else "clip"
    file = EmbeddingFile(format_, {"<cat>": vectors})
    (path, *_) = embedding_io.write_file(file, tmp_path / "learned_embeds.safetensors", target)
    (token,) = embedding_io.read_file(path).vectors
    rule = FORMATS[format_].pooling or FORMATS[target].pooling  # Stable Diffusion's MindSpore file has no rule to keep
    assert embedding_io.read_file(path).token_metadata(token) == {"pooling": rule}


@pytest.mark.reference
def test_a_pytorch_file_that_cannot_hold_the_pooling_rule_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    for rule, warnings in (("argmax", 0), ("end_of_text", 2)):
        file = EmbeddingFile("mindspore", {"<cat>": constant_vectors()}, {"pooling": rule})
        paths = embedding_io.write_file(file, tmp_path / "learned_embeds.bin", "diffusers", overwrite=True)
        assert len(caplog.messages) == warnings
        assert all(list(torch.load(path, weights_only=True)) == ["<cat>"] for path in paths)  # as diffusers needs it
    assert "learned_embeds.bin cannot hold the pooling rule" in caplog.messages[0]
    assert embedding_io.load(tmp_path).pooling == "argmax"


@pytest.mark.reference
def test_pickles_keep_the_keys_that_programs_look_for(tmp_path: Path) -> None:
    import torch

    metadata = {"pooling": "argmax", "details": '{"step": 7}'}
    a1111 = EmbeddingFile("a1111", {"<cat>": constant_vectors(2, ("clip_l",))}, metadata)
    embedding_io.write_file(a1111, tmp_path / "a.pt", "a1111")
    tree = torch.load(tmp_path / "a.pt", weights_only=True)
    assert (list(tree["string_to_param"]), tree["name"], tree["details"]) == (["*"], "<cat>", '{"step": 7}')
    comfyui = EmbeddingFile("clip", {"<cat>": constant_vectors()}, metadata)
    embedding_io.write_file(comfyui, tmp_path / "b.pt", "roettger")
    tree = torch.load(tmp_path / "b.pt", weights_only=True)
    assert [tree[name].shape[0] for name in ("emb", "emb2")] == [768, 1280]
    assert embedding_io.load(tmp_path / "b.pt").metadata == {"step": 7}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"of_words": "no JSON"}, "holds metadata of_words that is not JSON"),
        ({"of_words": "[1]"}, "holds metadata of_words that is not a JSON object"),
        ({"of_words": "[" * 100_000}, "holds metadata of_words that is not JSON"),
        ({"of_words": '{"<a>": 3}'}, "holds metadata of_words without a mapping for <a>"),
        ({"of_words": '{"<a>": {"pooling": ["argmax"]}}'}, "holds metadata pooling that is not a string"),
        ({"details": "[1]"}, "holds metadata details that is not a JSON object"),
        ({"details": "[" * 100_000}, "holds metadata details that is not JSON"),
    ],
)
def test_invalid_metadata_is_refused(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    for suffix, array in zip(("", "_2"), constant_vectors().values(), strict=True):
        save_file({"<a>": array}, tmp_path / f"learned_embeds{suffix}.safetensors", metadata)
    with pytest.raises(UserError, match=rf"{message}.*: the file is damaged"):
        embedding_io.load(tmp_path)
