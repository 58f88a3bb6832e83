"""gm/publishing and tools/push_to_hub.py: the folder that a word is shared as, and what is kept out of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from gm.embeddings import interchange
from gm.embeddings import io as embedding_io
from gm.errors import UserError
from gm.hub import export, layout
from gm.sampling import image_files as images
from tests.hub.embedding_files import saved
from tests.project import Call


def test_what_is_written(publish: Call, learned: Path, drawn: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "cat-toy"
    code, out, error = publish("--source", learned, "--target", target, "--images", drawn)
    assert (code, error) == (0, "")
    found = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    assert found == [
        "README.md",
        "cat-toy.safetensors",
        "images/0.png",
        "learned_embeds.safetensors",
        "learned_embeds_2.safetensors",
        "token_identifier.txt",
        "type_of_concept.txt",
    ]
    assert out.count("wrote") == len(found)
    assert (target / "token_identifier.txt").read_text() == "<cat-toy>"
    assert (target / "type_of_concept.txt").read_text() == "style"
    before = embedding_io.load(learned)
    assert sorted(load_file(target / "cat-toy.safetensors")) == ["clip_g", "clip_l"]
    for path in (target, target / "cat-toy.safetensors", target / "learned_embeds_2.safetensors"):
        after = embedding_io.load(path)
        assert (after.placeholder_token, after.pooling) == ("<cat-toy>", "end_of_text")
        assert (after.metadata["step"], after.metadata["recipe"]["training"]["total_step"]) == (7, 7)
        assert np.array_equal(after.vectors["clip_l"], before.vectors["clip_l"])
        assert np.array_equal(after.vectors["clip_g"], before.vectors["clip_g"])
    with Image.open(drawn) as one, Image.open(target / "images/0.png") as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))
    assert images.read_parameters(target / "images/0.png")["seed"] == 11


def test_nothing_tells_where_things_are_on_the_machine(
    publish: Call, learned: Path, drawn: Path, tmp_path: Path
) -> None:
    assert b"secret" in learned.read_bytes().replace(b"\0", b"")  # as UTF-32
    target = tmp_path / "out"
    assert publish("--source", learned, "--target", target, "--images", drawn)[0] == 0
    for path in target.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"secret" not in content
        assert str(tmp_path).encode() not in content
    kept = embedding_io.load(target).metadata["recipe"]
    assert kept == {
        "run": {"precision": "float32"},
        "concept": {"learnable_property": "style", "template_file": None},
        "data": {"random_flip": True},
        "training": {"total_step": 7},
    }
    assert export.public({"validation_prompt": ["red and/or blue"], "concepts": [{"data_path": "a"}]}) == {
        "validation_prompt": ["red and/or blue"]
    }


def test_a_photograph_goes_without_what_the_camera_wrote(learned: Path, tmp_path: Path) -> None:
    photo = Image.fromarray(np.full((8, 8, 3), 200, np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    photo.save(tmp_path / "photo.jpg", exif=exif, comment=b"secret")
    assert b"secret" in (tmp_path / "photo.jpg").read_bytes()
    made = export.prepare(learned, [tmp_path / "photo.jpg"])
    layout.write(made, tmp_path / "out")
    assert b"secret" not in (tmp_path / "out/images/0.png").read_bytes()
    assert made.images[0].recipe == {}


@pytest.mark.parametrize("word", ["../../up", "/", "", "a\\b", "<ü>", "." * 99])
def test_the_word_leads_out_of_no_folder(tmp_path: Path, word: str) -> None:
    made = export.prepare(saved(tmp_path / "a_ti.ckpt", word or "<>"))
    for path in layout.write(made, tmp_path / "out"):
        assert path.resolve().is_relative_to((tmp_path / "out").resolve())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_ti.ckpt", "out"]


@pytest.mark.parametrize("there", ["README.md", "cat-toy.safetensors", "learned_embeds_2.safetensors", "images/0.png"])
def test_nothing_is_overwritten_unasked(publish: Call, learned: Path, drawn: Path, tmp_path: Path, there: str) -> None:
    target = tmp_path / "out"
    (target / there).parent.mkdir(parents=True)
    (target / there).write_text("mine")
    (target / "notes.txt").write_text("mine")
    arguments = ("--source", learned, "--target", target, "--images", drawn)
    code, _, error = publish(*arguments)
    assert code == 2
    assert error == f"error: --target {target / there} already exists; --overwrite replaces it\n"
    assert (target / there).read_text() == "mine"
    assert len([path for path in target.rglob("*") if path.is_file()]) == 2
    assert publish(*arguments, "--overwrite")[0] == 0
    assert (target / there).read_bytes() != b"mine"
    assert (target / "notes.txt").read_text() == "mine"
    again = ("--source", target, "--target", target, "--images", target / "images/0.png", "--overwrite")
    assert publish(*again)[0] == 0  # from itself
    assert images.read_parameters(target / "images/0.png")["seed"] == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "@out"], "--source is missing"),
        (["--source", "@a_7_ti.ckpt"], "--target is missing"),
        (["--source", "@nothing.ckpt", "--target", "@out"], "there is not a file"),
        (["--source", "@a_7_ti.ckpt", "--target", "@a_7_ti.ckpt"], "is not a folder"),
        (["--source", "@a_7_ti.ckpt", "--target", "@out", "--images", "@no.png"], "there is no image"),
        (["--source", "@a_7_ti.ckpt", "--target", "@out", "--images", "@a_7_ti.ckpt"], "is no image, or damaged"),
        (
            ["--source", "@a_7_ti.ckpt", "--target", "@out", "--instance_prompt", "a toy"],
            "does not hold the word",
        ),
        (["--source", "@a_7_ti.ckpt", "--target", "@out", "--type_of_concept", "dog"], "invalid choice: 'dog'"),
        (["--source", "@a_7_ti.ckpt", "--target", "@out", "--push_to_hub", "a b/c"], "is no name of a repository"),
        (["--source", "@a_7_ti.ckpt", "--target", "@out", "--push_to_hub", "cat"], "give user/name"),
        (["--source", "@a_7_ti.ckpt", "--target", "@out", "--push_to_hub", "a/b/c"], "give user/name"),
    ],
)
def test_the_script_names_what_is_wrong(
    publish: Call, learned: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, _, error = publish(*(a.replace("@", f"{tmp_path}/") for a in arguments))
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a_7_ti.ckpt"]


def test_several_words_are_not_one(tmp_path: Path) -> None:
    rows = (np.ones((1, 3), np.float32), np.ones((1, 5), np.float32))
    interchange.write(
        interchange.EmbeddingFile("clip", {"<a>": rows, "<b>": rows}), tmp_path / "learned_embeds.bin", "diffusers"
    )
    with pytest.raises(UserError, match="holds several words"):
        export.prepare(tmp_path)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("as_file", [True, False])
def test_a_folder_of_the_concepts_library_loads_as_it_is(tmp_path: Path, ending: str, as_file: bool) -> None:
    """The word stands beside the file where the file holds none."""
    rows = {"clip_l": torch.ones(2, 3), "clip_g": torch.ones(2, 5)}
    path = tmp_path / f"learned_embeds.{ending}"
    if ending == "bin":
        torch.save(rows, path)
    else:
        save_file({name: values.numpy() for name, values in rows.items()}, path)
    assert embedding_io.load(path).placeholder_token == "learned_embeds"
    (tmp_path / "token_identifier.txt").write_text("<cät>\n", encoding="utf-8")
    (tmp_path / "type_of_concept.txt").write_text("object")
    assert [each.placeholder_token for each in embedding_io.load_all(path if as_file else tmp_path)] == ["<cät>"]
    torch.save({"<own>": torch.ones(2, 3)}, tmp_path / "learned_embeds.bin")
    torch.save({"<own>": torch.ones(2, 5)}, tmp_path / "learned_embeds_2.bin")
    assert embedding_io.load(tmp_path / "learned_embeds.bin").placeholder_token == "<own>"
    (tmp_path / "token_identifier.txt").write_bytes(b"\xff\xfe")
    save_file({name: values.numpy() for name, values in rows.items()}, tmp_path / "learned_embeds.safetensors")
    with pytest.raises(UserError, match=r"token_identifier\.txt does not hold a word"):
        embedding_io.load(tmp_path)
