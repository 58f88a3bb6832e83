"""gm/embeddings/formats.py and files.py: embedding files of every program, as each writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gm.embeddings import formats, interchange
from gm.embeddings import io as embedding_io
from gm.errors import UserError
from gm.training import setup
from tests.project import Workshop


def rows(vectors: int = 2, widths: tuple[int, int] = (16, 24), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    one, two = (torch.randn(vectors, width, generator=made) for width in widths)
    return one, two


ONE, TWO = rows()


def pair(folder: Path, ending: str = "safetensors", steps: str = "", word: str = "<cat>") -> None:
    for second, tensor in (("", ONE), ("_2", TWO)):
        path = folder / f"learned_embeds{second}{steps}.{ending}"
        if ending == "bin":
            torch.save({word: tensor}, path)
        else:
            save_file({word: tensor}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "saved", "word", "pooling"),
    [
        ("my-cat.safetensors", {"clip_l": ONE, "clip_g": TWO}, "my-cat", "end_of_text"),
        ("my-cat.safetensors", {"clip_l": ONE.half(), "clip_g": TWO.bfloat16()}, "my-cat", "end_of_text"),
        ("embeddings.pti", {"text_encoders_0": ONE, "text_encoders_1": TWO}, "embeddings", "argmax"),
        ("cat.pt", {"emb": ONE[0], "emb2": TWO[0]}, "cat", "argmax"),
        ("cat.bin", {"clip_l": ONE, "clip_g": TWO}, "cat", "end_of_text"),  # the ending does not count
    ],
)
def test_one_file_of_both_encoders(
    tmp_path: Path, name: str, saved: dict[str, torch.Tensor], word: str, pooling: str
) -> None:
    (torch.save if name.endswith(("pt", "bin")) else save_file)(saved, tmp_path / name)
    found = embedding_io.load(tmp_path / name)
    assert (found.placeholder_token, found.pooling) == (word, pooling)
    for ours, theirs in zip((found.vectors["clip_l"], found.vectors["clip_g"]), saved.values(), strict=True):
        assert ours.dtype == np.float32
        assert np.array_equal(ours, np.atleast_2d(theirs.float().numpy()))


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("given", ["", "learned_embeds", "learned_embeds_2"])
def test_the_two_files_of_diffusers_stand_for_each_other(tmp_path: Path, given: str, ending: str) -> None:
    pair(tmp_path, ending)
    found = embedding_io.load(tmp_path / f"{given}.{ending}" if given else tmp_path)
    assert (found.placeholder_token, found.pooling) == ("<cat>", "argmax")
    assert np.array_equal(found.vectors["clip_l"], ONE.numpy())
    assert np.array_equal(found.vectors["clip_g"], TWO.numpy())


def test_a_folder_gives_its_last_files(tmp_path: Path) -> None:
    pair(tmp_path, steps="-steps-500", word="<early>")
    pair(tmp_path, steps="-steps-1000", word="<late>")
    assert embedding_io.load(tmp_path).placeholder_token == "<late>"
    assert embedding_io.load(tmp_path / "learned_embeds_2-steps-500.safetensors").placeholder_token == "<early>"
    pair(tmp_path, word="<end>")
    assert embedding_io.load(tmp_path).placeholder_token == "<end>"


def a1111(word: str = "*", parameters: Any = None, **others: Any) -> dict[str, Any]:
    return {
        "string_to_token": {word: torch.tensor([265])},
        "string_to_param": {word: ONE} if parameters is None else parameters,
        "name": "my-style",
        "step": 499,
        "sd_checkpoint": "c6bbc15e",
        "sd_checkpoint_name": "v1-5",
        **others,
    }


def test_a_file_of_one_encoder_names_what_is_missing(tmp_path: Path) -> None:
    wide_1, wide_2 = rows(widths=(768, 1280))
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("a.pt", a1111(parameters={"*": wide_1}), "OpenCLIP bigG, text encoder 2"),
        ("b.pt", a1111(parameters=torch.nn.ParameterDict({"<b>": torch.nn.Parameter(wide_1)})), "OpenCLIP bigG"),
        ("c.bin", {"<c>": wide_1[0]}, "OpenCLIP bigG"),
        ("d.bin", {"<d>": wide_2}, "CLIP-L, text encoder 1"),
        ("e.safetensors", {"emb_params": ONE}, "OpenCLIP bigG"),
        ("f.safetensors", {"clip_g": TWO}, "CLIP-L, text encoder 1"),
        ("g.safetensors", {"<g>": ONE}, "OpenCLIP bigG"),
        ("h.pt", {"emb": ONE[0]}, "OpenCLIP bigG"),
    ]
    for name, saved, message in cases:
        (save_file if name.endswith("safetensors") else torch.save)(saved, tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} lacks the rows of {message}.*; SDXL needs both"):
            embedding_io.load(tmp_path / name)


def test_parts_of_automatic1111_and_invokeai(tmp_path: Path) -> None:
    """They hold one encoder; what they say of words and rows is read all the same."""
    for saved, words in (
        (a1111(), ["my-style"]),
        (a1111(name=""), [None]),
        (a1111("<a>"), ["<a>"]),
        (a1111(parameters=torch.nn.ParameterDict({"<a>": ONE, "<b>": ONE})), ["<a>", "<b>"]),
        (a1111(parameters={"_parameters": {"<a>": ONE[0]}}), ["<a>"]),
    ):
        torch.save(saved, tmp_path / "a.pt")
        learned = interchange.read(tmp_path / "a.pt")
        assert learned.format == "a1111"
        assert list(learned.words) == words
        assert all(one.shape[1] == 16 and two is None for one, two in learned.words.values())
        assert learned.notes["sd_checkpoint_name"] == "v1-5"


def test_what_is_no_learned_file_is_said(tmp_path: Path) -> None:
    for name, saved, message in (
        (
            "lora.safetensors",
            {"lora_te1_x.lora_down.weight": ONE, "lora_te1_x.lora_up.weight": TWO},
            "it seems to be a LoRA",
        ),
        ("list.pt", [ONE], "it holds no token rows; training writes"),
        ("deep.safetensors", {"a": torch.randn(2, 3, 4)}, "it holds no token rows"),
        ("widths.safetensors", {"a": ONE, "b": TWO}, "it holds no token rows"),
        ("many.safetensors", {"a": torch.randn(500, 16)}, "it holds no token rows"),
    ):
        (save_file if name.endswith("safetensors") else torch.save)(saved, tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} is no embedding file: {message}"):
            embedding_io.load(tmp_path / name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"is a folder without learned_embeds\.safetensors; give an embedding file"):
        embedding_io.load(tmp_path / "folder")
    with pytest.raises(UserError, match="there is not a file"):
        embedding_io.load(tmp_path / "nowhere.pt")


def test_a_file_of_several_words(tmp_path: Path) -> None:
    for second, width in (("", 16), ("_2", 24)):
        words = {word: rows(2, (width, width), seed)[0] for seed, word in enumerate(("<a>", "<b>"))}
        save_file(words, tmp_path / f"learned_embeds{second}.safetensors")
    first, second_ = embedding_io.load_all(tmp_path)
    assert (first.placeholder_token, second_.placeholder_token) == ("<a>", "<b>")
    assert np.array_equal(second_.vectors["clip_g"], rows(2, (24, 24), 1)[0].numpy())
    with pytest.raises(UserError, match=r"holds several words \(<a>, <b>\); give a file that holds one"):
        embedding_io.load(tmp_path)


def test_formats_are_told_apart_by_their_names_alone() -> None:
    programs = [each.program for each in formats.FORMATS.values()]
    assert len(set(programs)) == len(programs)
    assert formats.detect({}) is None


@pytest.mark.parametrize("kind", ["clip", "pair", "pickle"])
def test_learning_starts_from_any_of_them(workshop: Workshop, tmp_path: Path, kind: str) -> None:
    if kind == "pair":
        pair(tmp_path)
    elif kind == "clip":
        save_file({"clip_l": ONE, "clip_g": TWO}, tmp_path / "a.safetensors")
    else:
        torch.save({"emb": ONE[0], "emb2": TWO[0]}, tmp_path / "a.pt")
    path = {"clip": tmp_path / "a.safetensors", "pair": tmp_path, "pickle": tmp_path / "a.pt"}[kind]
    concept = setup.prepare(workshop.config(concept={"initializer_file": str(path)})).concepts[0]
    assert concept.initial_vectors is not None
    for ours, theirs in zip(concept.initial_vectors.values(), (ONE, TWO), strict=True):
        assert np.array_equal(ours, theirs.numpy()[: 1 if kind == "pickle" else 2])
