"""Embeddings of Stable Diffusion 1 and 2: files of any program, in the family that they were trained in."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import safetensors.numpy
from mindspore import Tensor

from gm import api
from gm.config.model import ModelConfig
from gm.config.networks import TextEncoderConfig, UNetConfig
from gm.embeddings import description
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import NO_POOLING, Embedding, combine
from gm.embeddings.formats import SD1_TABLE, SD2_TABLE
from gm.embeddings.io import EmbeddingFile
from gm.errors import UserError
from gm.hub import export, layout
from gm.text import bpe

UNET = {"adm_in_channels": 0, "channel_mult": (1, 2, 4, 4), "transformer_depth": (1, 1, 1, 0)}
MODELS = {
    "sdxl": ModelConfig(),
    "sd1": ModelConfig(family="sd1", unet=UNetConfig(context_dim=768, **UNET)),
    "sd2": ModelConfig(
        family="sd2", unet=UNetConfig(context_dim=1024, **UNET), text_encoder_1=TextEncoderConfig(1024, 23, 16)
    ),
}
WIDTHS = {"clip_l": 768, "clip_h": 1024}
FAMILIES = pytest.mark.parametrize(("family", "encoder"), [("sd1", "clip_l"), ("sd2", "clip_h")])


def rows(width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, width), dtype=np.float32)


@FAMILIES
@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("a.pt", "a1111"),
        ("a.safetensors", "kohya"),
        ("a.ckpt", "mindspore_sd"),
        ("learned_embeds.safetensors", "diffusers"),
        ("a.bin", "diffusers"),
    ],
)
def test_files_of_every_program_are_used(tmp_path: Path, family: str, encoder: str, name: str, format_: str) -> None:
    vectors = rows(WIDTHS[encoder])
    file = EmbeddingFile("a1111", {"<toy>": {encoder: vectors}})
    (path,) = embedding_io.write_file(file, tmp_path / name, format_)
    (embedding,) = embedding_io.load_all(f"{path}=<toy>", family)
    assert (list(embedding.vectors), embedding.pooling) == ([encoder], NO_POOLING)
    loaded = combine([embedding], MODELS[family])
    np.testing.assert_array_equal(loaded.vectors[encoder], vectors)
    assert list(loaded.vectors) == [encoder]


@FAMILIES
def test_comfyui_names_the_encoder(tmp_path: Path, family: str, encoder: str) -> None:
    safetensors.numpy.save_file({encoder: rows(WIDTHS[encoder])}, tmp_path / "a.safetensors")
    embedding = embedding_io.load(tmp_path / "a.safetensors", family)
    assert embedding.dims == {encoder: WIDTHS[encoder]}


@pytest.mark.parametrize(
    ("tree", "family", "message"),
    [
        (
            {"clip_l": rows(768)},
            "sd2",
            "vectors of 768 values, an embedding of Stable Diffusion 1; the model is Stable D",
        ),
        ({"emb_params": rows(1024)}, "sd1", "vectors of 1024 values, an embedding of Stable Diffusion 2; the model is"),
        (
            {"clip_l": rows(768), "clip_g": rows(1280)},
            "sd1",
            "vectors of 768 and 1280 values, an embedding of SDXL; the model is Stable Diffusion 1: train it there",
        ),
        ({"clip_g": rows(1280)}, "sd2", "vectors of 1280 values, an embedding of SDXL"),
        ({"clip_h": rows(1024)}, "sdxl", r"vectors of 1024 values, an embedding of another model \(OpenCLIP H has"),
        ({"t5": rows(4096)}, "sd1", "vectors of 4096 values"),
    ],
)
def test_an_embedding_of_another_family_is_named(
    tmp_path: Path, tree: dict[str, np.ndarray], family: str, message: str
) -> None:
    safetensors.numpy.save_file(tree, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=rf"a\.safetensors holds {message}"):
        embedding_io.load_all(tmp_path / "a.safetensors", family)


@FAMILIES
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_what_is_saved_loads_again_and_in_no_other_family(
    tmp_path: Path, family: str, encoder: str, suffix: str
) -> None:
    architecture = {"modelspec.architecture": f"stable-diffusion-v{family[-1]}/textual-inversion"}
    saved = Embedding("<toy>", {encoder: rows(WIDTHS[encoder])}, NO_POOLING, {"step": 3, **architecture})
    path = tmp_path / f"a{suffix}"
    api.save_embedding(saved, path)
    for loaded in (embedding_io.load(path, family), api.load_embedding(path)):
        assert (loaded.placeholder_token, loaded.pooling, loaded.metadata) == ("<toy>", NO_POOLING, saved.metadata)
        np.testing.assert_array_equal(loaded.vectors[encoder], saved.vectors[encoder])
        for other in MODELS.keys() - {family}:
            with pytest.raises(UserError, match="was trained on another model"):
                combine([loaded], MODELS[other])
    with pytest.raises(UserError):
        embedding_io.load(path)  # of SDXL
    entry = embedding_io.read_file(path)
    assert "pooling" not in entry.metadata


@pytest.mark.parametrize(
    ("name", "width", "encoder"),
    [
        (SD1_TABLE, 768, "clip_l"),
        (SD2_TABLE, 1024, "clip_h"),
        ("cond_stage_model.transformer.embedding_table", 768, "clip_l"),  # mindone's names
        ("cond_stage_model.transformer.embedding_table", 1024, "clip_h"),
    ],
)
def test_mindspore_files_are_read(tmp_path: Path, name: str, width: int, encoder: str) -> None:
    entry = {"name": name, "data": Tensor(rows(width))}
    ms.save_checkpoint([entry], str(tmp_path / "a.ckpt"), append_dict={"placeholder_token": "<a>", "num_vectors": 2})
    embedding = embedding_io.load(tmp_path / "a.ckpt", family=None)
    assert (embedding.placeholder_token, embedding.dims) == ("<a>", {encoder: width})


@pytest.mark.reference
@FAMILIES
def test_files_of_both_kinds_have_one_tensor_as_automatic1111_and_comfyui_take_it(
    tmp_path: Path, family: str, encoder: str
) -> None:
    """AUTOMATIC1111 takes the only tensor of a file (modules/textual_inversion), ComfyUI the key `clip_l` or `clip_h`
    (comfy/sd1_clip.py, `load_embed`)."""
    embedding_io.save(Embedding("<toy>", {encoder: rows(WIDTHS[encoder])}, NO_POOLING), tmp_path / "a.safetensors")
    assert list(safetensors.numpy.load_file(tmp_path / "a.safetensors")) == [encoder]


@pytest.mark.parametrize(
    ("name", "width", "encoder"),
    [
        ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", 768, "clip_l"),
        ("cond_stage_model.model.token_embedding.weight", 1024, "clip_h"),
        (SD1_TABLE, 768, "clip_l"),
    ],
)
def test_the_nearest_tokens_are_those_of_the_only_encoder(tmp_path: Path, name: str, width: int, encoder: str) -> None:
    table = np.random.default_rng(1).standard_normal((400, width), dtype=np.float32)
    safetensors.numpy.save_file({name: table}, tmp_path / "model.safetensors")
    tables = description.read_token_tables(tmp_path / "model.safetensors")
    assert list(tables) == [encoder]
    file = EmbeddingFile("mindspore_sd", {"<toy>": {encoder: table[[320]]}})
    described = description.describe(file, tables)
    assert "pooling" not in described
    assert described["embeddings"]["<toy>"][encoder]["nearest"][0][0] == f"{bpe.decode_token(320)} 1.00"


def test_the_nearest_tokens_of_a_diffusers_folder(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (tmp_path / "text_encoder").mkdir()
    table = {"text_model.embeddings.token_embedding.weight": rows(1024)}
    safetensors.numpy.save_file(table, tmp_path / "text_encoder" / "model.safetensors")
    assert list(description.read_token_tables(tmp_path)) == ["clip_h"]


def test_a_published_folder_is_that_of_one_encoder(tmp_path: Path) -> None:
    metadata = {"version": "SD-1.5"}
    embedding_io.save(Embedding("<toy>", {"clip_l": rows(768)}, NO_POOLING, metadata), tmp_path / "a.ckpt")
    publication = export.prepare(tmp_path / "a.ckpt")
    layout.write(publication, tmp_path / "published")
    names = sorted(path.name for path in (tmp_path / "published").iterdir())
    assert names == [
        "README.md",
        "learned_embeds.safetensors",
        "token_identifier.txt",
        "toy.safetensors",
        "type_of_concept.txt",
    ]
    card = (tmp_path / "published" / "README.md").read_text()
    assert "from diffusers import StableDiffusionPipeline" in card
    assert "text_encoder_2" not in card
    assert "- stable-diffusion\n" in card
    assert embedding_io.load(tmp_path / "published", "sd1").dims == {"clip_l": 768}


@pytest.mark.parametrize("format_", ["a1111", "kohya", "diffusers"])
@FAMILIES
def test_no_pooling_rule_is_described(tmp_path: Path, family: str, encoder: str, format_: str) -> None:
    file = EmbeddingFile("a1111", {"<toy>": {encoder: rows(WIDTHS[encoder])}})
    name = "a.pt" if format_ == "a1111" else "learned_embeds.safetensors"
    (path,) = embedding_io.write_file(file, tmp_path / name, format_)
    assert "pooling" not in description.describe(embedding_io.read_file(path))
    if encoder == "clip_h":
        assert "pooling" not in embedding_io.read_file(path).metadata


def test_a_converted_file_is_still_of_stable_diffusion_1(tmp_path: Path) -> None:
    """Vectors of CLIP-L alone in ComfyUI's format could be of SDXL, trained in one text encoder."""
    (path,) = embedding_io.write_file(
        EmbeddingFile("a1111", {"<toy>": {"clip_l": rows(768)}}), tmp_path / "a.pt", "a1111"
    )
    embedding_io.save(embedding_io.load(path, None), tmp_path / "b.safetensors")
    assert embedding_io.load(tmp_path / "b.safetensors", None).pooling == NO_POOLING
    with pytest.raises(UserError, match=r"the embedding was trained on another model .*stable-diffusion-v1"):
        embedding_io.load(tmp_path / "b.safetensors")
