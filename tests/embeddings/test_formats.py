"""gm/embeddings/formats.py and io.py: embedding files of every program, as each writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gm.embeddings import formats
from gm.embeddings import io as embedding_io
from gm.errors import UserError
from gm.training import setup
from tests.project import Workshop

pytestmark = pytest.mark.reference


def random_tensors(
    num_vectors: int = 2, widths: tuple[int, int] = (16, 24), seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clip_l, clip_g = (torch.randn(num_vectors, width, generator=generator) for width in widths)
    return clip_l, clip_g


CLIP_L, CLIP_G = random_tensors()


def save_pair(folder: Path, suffix: str = "safetensors", step: str = "", token: str = "<cat>") -> None:
    """Write the two files of diffusers."""
    for number, tensor in (("", CLIP_L), ("_2", CLIP_G)):
        path = folder / f"learned_embeds{number}{step}.{suffix}"
        if suffix == "bin":
            torch.save({token: tensor}, path)
        else:
            save_file({token: tensor}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "saved", "token", "pooling"),
    [
        ("my-cat.safetensors", {"clip_l": CLIP_L, "clip_g": CLIP_G}, "my-cat", "unknown"),
        ("my-cat.safetensors", {"clip_l": CLIP_L.half(), "clip_g": CLIP_G.bfloat16()}, "my-cat", "unknown"),
        ("embeddings.pti", {"text_encoders_0": CLIP_L, "text_encoders_1": CLIP_G}, "embeddings", "argmax"),
        ("cat.pt", {"emb": CLIP_L[0], "emb2": CLIP_G[0]}, "<cat>", "argmax"),
        ("cat.bin", {"clip_l": CLIP_L, "clip_g": CLIP_G}, "<cat>", "unknown"),  # the suffix does not matter
    ],
)
def test_one_file_of_both_text_encoders(
    tmp_path: Path, name: str, saved: dict[str, torch.Tensor], token: str, pooling: str
) -> None:
    (torch.save if name.endswith(("pt", "bin")) else save_file)(saved, tmp_path / name)
    embedding = embedding_io.load(tmp_path / name)
    assert (embedding.placeholder_token, embedding.pooling) == (token, pooling)
    for ours, theirs in zip(embedding.vectors.values(), saved.values(), strict=True):
        assert ours.dtype == np.float32
        assert np.array_equal(ours, np.atleast_2d(theirs.float().numpy()))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("stem", ["", "learned_embeds", "learned_embeds_2"])
def test_the_folder_and_either_file_of_diffusers_load_alike(tmp_path: Path, stem: str, suffix: str) -> None:
    save_pair(tmp_path, suffix)
    embedding = embedding_io.load(tmp_path / f"{stem}.{suffix}" if stem else tmp_path)
    assert (embedding.placeholder_token, embedding.pooling) == ("<cat>", "argmax")
    assert np.array_equal(embedding.vectors["clip_l"], CLIP_L.numpy())
    assert np.array_equal(embedding.vectors["clip_g"], CLIP_G.numpy())


def test_a_folder_gives_its_last_files(tmp_path: Path) -> None:
    save_pair(tmp_path, step="-steps-500", token="<early>")
    save_pair(tmp_path, step="-steps-1000", token="<late>")
    assert embedding_io.load(tmp_path).placeholder_token == "<late>"
    assert embedding_io.load(tmp_path / "learned_embeds_2-steps-500.safetensors").placeholder_token == "<early>"
    save_pair(tmp_path, token="<end>")
    assert embedding_io.load(tmp_path).placeholder_token == "<end>"


def a1111(token: str = "*", parameters: Any = None, **others: Any) -> dict[str, Any]:
    return {
        "string_to_token": {token: torch.tensor([265])},
        "string_to_param": {token: CLIP_L} if parameters is None else parameters,
        "name": "my-style",
        "step": 499,
        "sd_checkpoint": "c6bbc15e",
        "sd_checkpoint_name": "v1-5",
        **others,
    }


def test_a_file_of_one_text_encoder_names_the_missing_one(tmp_path: Path) -> None:
    wide_l, wide_g = random_tensors(widths=(768, 1280))
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("a.pt", a1111(parameters={"*": wide_l}), "OpenCLIP bigG, text encoder 2"),
        ("b.pt", a1111(parameters=torch.nn.ParameterDict({"<b>": torch.nn.Parameter(wide_l)})), "OpenCLIP bigG"),
        ("c.bin", {"<c>": wide_l[0]}, "OpenCLIP bigG"),
        ("d.bin", {"<d>": wide_g}, "CLIP-L, text encoder 1"),
        ("e.safetensors", {"emb_params": CLIP_L}, "OpenCLIP bigG"),
        ("f.safetensors", {"clip_g": CLIP_G}, "CLIP-L, text encoder 1"),
        ("g.safetensors", {"<g>": CLIP_L}, "OpenCLIP bigG"),
        ("h.pt", {"emb": CLIP_L[0]}, "OpenCLIP bigG"),
    ]
    for name, saved, message in cases:
        (save_file if name.endswith("safetensors") else torch.save)(saved, tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} lacks the vectors of {message}.*; SDXL needs both"):
            embedding_io.load(tmp_path / name)


def test_files_of_automatic1111_and_invokeai_are_read(tmp_path: Path) -> None:
    """They hold one text encoder, so `read_file` reads them and `load` does not."""
    for saved, tokens in (
        (a1111(), ["my-style"]),
        (a1111(name=""), [None]),
        (a1111("<a>"), ["<a>"]),
        (a1111(parameters=torch.nn.ParameterDict({"<a>": CLIP_L, "<b>": CLIP_L})), ["<a>", "<b>"]),
        (a1111(parameters={"_parameters": {"<a>": CLIP_L[0]}}), ["<a>"]),
    ):
        torch.save(saved, tmp_path / "a.pt")
        file = embedding_io.read_file(tmp_path / "a.pt")
        assert file.format == "a1111"
        assert list(file.vectors) == tokens
        for vectors in file.vectors.values():
            assert list(vectors) == ["clip_l"]
            assert vectors["clip_l"].shape[1] == 16
        assert file.metadata["sd_checkpoint_name"] == "v1-5"


def test_a_file_that_is_not_an_embedding_file_is_identified(tmp_path: Path) -> None:
    for name, saved, message in (
        (
            "lora.safetensors",
            {"lora_te1_x.lora_down.weight": CLIP_L, "lora_te1_x.lora_up.weight": CLIP_G},
            "it seems to be a LoRA",
        ),
        ("list.pt", [CLIP_L], "it holds no embedding vectors; training writes"),
        ("deep.safetensors", {"a": torch.randn(2, 3, 4)}, "it holds no embedding vectors"),
        ("widths.safetensors", {"a": CLIP_L, "b": CLIP_G}, "it holds no embedding vectors"),
        ("many.safetensors", {"a": torch.randn(500, 16)}, "it holds no embedding vectors"),
    ):
        (save_file if name.endswith("safetensors") else torch.save)(saved, tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} is not an embedding file: {message}"):
            embedding_io.load(tmp_path / name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"is a folder without learned_embeds\.safetensors; give an embedding file"):
        embedding_io.load(tmp_path / "folder")
    with pytest.raises(UserError, match="is not a file"):
        embedding_io.load(tmp_path / "nowhere.pt")


def test_a_file_of_several_embeddings(tmp_path: Path) -> None:
    for number, width in (("", 16), ("_2", 24)):
        tensors = {token: random_tensors(2, (width, width), seed)[0] for seed, token in enumerate(("<a>", "<b>"))}
        save_file(tensors, tmp_path / f"learned_embeds{number}.safetensors")
    first, second = embedding_io.load_all(tmp_path)
    assert (first.placeholder_token, second.placeholder_token) == ("<a>", "<b>")
    assert np.array_equal(second.vectors["clip_g"], random_tensors(2, (24, 24), 1)[0].numpy())
    with pytest.raises(UserError, match=r"holds several embeddings \(<a>, <b>\); give a file that holds one"):
        embedding_io.load(tmp_path)


def test_formats_have_distinct_program_names_and_none_matches_an_empty_file() -> None:
    programs = [format_.program for format_ in formats.FORMATS.values()]
    assert len(set(programs)) == len(programs)
    assert formats.detect({}) is None


@pytest.mark.parametrize("kind", ["clip", "pair", "pickle"])
def test_training_starts_from_any_format(workshop: Workshop, tmp_path: Path, kind: str) -> None:
    if kind == "pair":
        save_pair(tmp_path)
    elif kind == "clip":
        save_file({"clip_l": CLIP_L, "clip_g": CLIP_G}, tmp_path / "a.safetensors")
    else:
        torch.save({"emb": CLIP_L[0], "emb2": CLIP_G[0]}, tmp_path / "a.pt")
    path = {"clip": tmp_path / "a.safetensors", "pair": tmp_path, "pickle": tmp_path / "a.pt"}[kind]
    concept = setup.prepare(workshop.config(concept={"initializer_file": str(path)})).concepts[0]
    assert concept.initial_vectors is not None
    for ours, theirs in zip(concept.initial_vectors.values(), (CLIP_L, CLIP_G), strict=True):
        assert np.array_equal(ours, theirs.numpy()[: 1 if kind == "pickle" else 2])
