"""gm/publishing and tools/publish.py: the folder that a word is shared as, and what is kept out of it."""

from __future__ import annotations

import functools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image, PngImagePlugin
from safetensors.numpy import load_file, save_file

from gm import command_line
from gm.concepts import exchange, files
from gm.concepts.concept import Concept
from gm.errors import UserError
from gm.generation import files as pictures
from gm.publishing import folder, publication
from tests.workshop import Call

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "publish.py"
RECIPE = {
    "run": {"weight": "/home/ann/secret/model.ckpt", "precision": "float32"},
    "concept": {"learnable_property": "style", "initializer_file": "secret_ti.ckpt", "template_file": None},
    "data": {"data_path": "secret photos", "flip": True},
    "training": {"save_path": "C:\\secret", "validation_prompt": ["red and/or blue", "secret.txt"], "total_step": 7},
}
DETAILS = {"version": "SD-XL-base-1.0", "base_model": "9d0f", "step": 7, "seed": 42, "recipe": RECIPE}


def saved(path: Path, word: str = "<cat-toy>", pooling: str = "end_of_text", details: Any = DETAILS) -> Path:
    rows = (np.random.default_rng(k).standard_normal((2, k)).astype(np.float32) for k in (16, 24))
    files.save(Concept(word, *rows, pooling, details), path)
    return path


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    return saved(tmp_path / "a_7_ti.ckpt")


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A picture as the toolkit draws it."""
    noise = np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    recipe = {"prompt": "a <cat-toy> | `red`", "seed": 11, "height": None, "sampler": "euler", "weight": "secret.ckpt"}
    pictures.write(noise, {**recipe, "textual_inversion_weight": ["secret_ti.ckpt"]}, tmp_path / "drawn.png")
    return tmp_path / "drawn.png"


@pytest.fixture
def publish(call: Call) -> Call:
    """Return the function that calls the script."""
    return functools.partial(call, SCRIPT)


def test_what_is_written(publish: Call, learned: Path, drawn: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "cat-toy"
    code, out, error = publish("--source", learned, "--target", target, "--pictures", drawn)
    assert (code, error) == (0, "")
    found = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    assert found == [
        "README.md",
        "cat-toy.safetensors",
        "learned_embeds.safetensors",
        "learned_embeds_2.safetensors",
        "pictures/0.png",
        "token_identifier.txt",
        "type_of_concept.txt",
    ]
    assert out.count("wrote") == len(found)
    assert (target / "token_identifier.txt").read_text() == "<cat-toy>"
    assert (target / "type_of_concept.txt").read_text() == "style"
    before = files.load(learned)
    assert sorted(load_file(target / "cat-toy.safetensors")) == ["clip_g", "clip_l"]
    for path in (target, target / "cat-toy.safetensors", target / "learned_embeds_2.safetensors"):
        after = files.load(path)
        assert (after.placeholder, after.pooling) == ("<cat-toy>", "end_of_text")
        assert (after.details["step"], after.details["recipe"]["training"]["total_step"]) == (7, 7)
        assert np.array_equal(after.rows_1, before.rows_1)
        assert np.array_equal(after.rows_2, before.rows_2)
    with Image.open(drawn) as one, Image.open(target / "pictures/0.png") as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))
    assert pictures.recipe(target / "pictures/0.png")["seed"] == 11


def test_nothing_tells_where_things_are_on_the_machine(
    publish: Call, learned: Path, drawn: Path, tmp_path: Path
) -> None:
    assert b"secret" in learned.read_bytes().replace(b"\0", b"")  # as UTF-32
    target = tmp_path / "out"
    assert publish("--source", learned, "--target", target, "--pictures", drawn)[0] == 0
    for path in target.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"secret" not in content
        assert str(tmp_path).encode() not in content
    kept = files.load(target).details["recipe"]
    assert kept == {
        "run": {"precision": "float32"},
        "concept": {"learnable_property": "style", "template_file": None},
        "data": {"flip": True},
        "training": {"total_step": 7},
    }
    assert publication.public({"validation_prompt": ["red and/or blue"], "concepts": [{"data_path": "a"}]}) == {
        "validation_prompt": ["red and/or blue"]
    }


def test_a_photograph_goes_without_what_the_camera_wrote(learned: Path, tmp_path: Path) -> None:
    photo = Image.fromarray(np.full((8, 8, 3), 200, np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    photo.save(tmp_path / "photo.jpg", exif=exif, comment=b"secret")
    assert b"secret" in (tmp_path / "photo.jpg").read_bytes()
    made = publication.prepare(learned, [tmp_path / "photo.jpg"])
    folder.write(made, tmp_path / "out")
    assert b"secret" not in (tmp_path / "out/pictures/0.png").read_bytes()
    assert made.pictures[0].recipe == {}


def card(target: Path) -> tuple[dict[str, Any], str]:
    """Return the head and the text of a card."""
    head, text = (target / "README.md").read_text().removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(head), text


def test_the_card(publish: Call, learned: Path, drawn: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    flags = ("--license", "openrail++", "--pictures", drawn, drawn)
    assert publish("--source", learned, "--target", target, *flags)[0] == 0
    head, text = card(target)
    assert head["license"] == "openrail++"
    assert head["base_model"] == "stabilityai/stable-diffusion-xl-base-1.0"
    assert head["instance_prompt"] == "a picture in the style of <cat-toy>"
    assert {"text-to-image", "stable-diffusion-xl", "textual_inversion"} <= set(head["tags"])
    assert [each["output"]["url"] for each in head["widget"]] == ["pictures/0.png", "pictures/1.png"]
    assert head["widget"][0]["text"] == "a <cat-toy> | `red`"
    assert ModelCard((target / "README.md").read_text()).data.to_dict()["base_model"] == head["base_model"]
    assert "prompt `` a <cat-toy> | `red` ``, seed `11`, sampler `euler`" in text
    assert all((target / place).is_file() for place in re.findall(r"!\[\]\((.*?)\)", text))
    for name in ("learned_embeds.safetensors", "learned_embeds_2.safetensors", "cat-toy.safetensors"):
        assert name in text
    assert "from_pretrained('stabilityai/stable-diffusion-xl-base-1.0'" in text
    (shown,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert json.loads(shown) == files.load(target).details


def test_the_toolkits_own_command_on_the_card_is_one(learned: Path, tmp_path: Path) -> None:
    for pooling in ("end_of_text", "argmax"):
        saved(learned, "<it's>", pooling)
        folder.write(publication.prepare(learned), tmp_path / "out", overwrite=True)
        (command,) = re.findall(r"```bash\n(.*?)```", card(tmp_path / "out")[1], re.DOTALL)
        python, script, *arguments = shlex.split(command.replace("\\\n", " "))
        assert (python, (SCRIPT.parents[1] / script).is_file()) == ("python", True)
        config = command_line.parse("", ("run", "sampling"), arguments)
        assert config.sampling.prompt == "a picture in the style of <it's>"
        assert config.run.pooling == pooling
        assert ("49407" in card(tmp_path / "out")[1]) is (pooling == "end_of_text")


def test_what_is_given_goes_before_what_the_file_says(publish: Call, learned: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    given = {
        "--placeholder_token": "<dog>",
        "--type_of_concept": "face",
        "--instance_prompt": "<dog>: `yes` ---\n# no",
        "--base_model": "me/mine",
    }
    arguments = [part for pair in given.items() for part in pair]
    assert publish("--source", learned, "--target", target, *arguments)[0] == 0
    head, text = card(target)
    assert (head["base_model"], head["instance_prompt"]) == ("me/mine", "<dog>: `yes` --- # no")
    assert "license" not in head
    assert "No licence is given" in text
    assert re.findall(r"^# .*", text, re.MULTILINE) == ["# dog"]
    assert (target / "type_of_concept.txt").read_text() == "face"
    assert files.load(target).placeholder == "<dog>"
    assert (target / "dog.safetensors").is_file()


def test_a_file_without_details_is_an_object(tmp_path: Path) -> None:
    rows = {"clip_l": np.ones((1, 3), np.float32), "clip_g": np.ones((1, 5), np.float32)}
    save_file(rows, tmp_path / "b.safetensors")
    folder.write(publication.prepare(tmp_path / "b.safetensors"), tmp_path / "out")
    head, text = card(tmp_path / "out")
    assert head["instance_prompt"] == "a photo of b"
    assert "base_model" not in head
    assert "How it was learned" not in text
    for details in ({"recipe": 3}, {"recipe": {"concept": [1]}}, {"recipe": {"concept": {"learnable_property": []}}}):
        assert publication.prepare(saved(tmp_path / "c_ti.ckpt", details=details)).kind == "object"


@pytest.mark.parametrize("recipe", ["no JSON", "[1]", "3", "[" * 100_000, '{"prompt": ["a"], "seed": {}}'])
def test_a_recipe_that_another_program_wrote(tmp_path: Path, learned: Path, recipe: str) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("recipe", recipe)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=text)
    folder.write(publication.prepare(learned, [tmp_path / "a.png"]), tmp_path / "out")
    assert card(tmp_path / "out")[0]["widget"][0]["output"] == {"url": "pictures/0.png"}


def test_details_without_end_are_left_out(tmp_path: Path) -> None:
    rows = {"clip_l": np.ones((1, 3), np.float32), "clip_g": np.ones((1, 5), np.float32)}
    for opening, closing in (('{"a":', "}"), ("[", "]")):
        details = '{"step": 7, "deep": ' + opening * 700 + '"/secret"' + closing * 700 + "}"
        save_file(rows, tmp_path / "b.safetensors", {"details": details})
        folder.write(publication.prepare(tmp_path / "b.safetensors"), tmp_path / "out", overwrite=True)
        assert files.load(tmp_path / "out").details["step"] == 7
        assert "secret" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("word", ["../../up", "/", "", "a\\b", "<ü>", "." * 99])
def test_the_word_leads_out_of_no_folder(tmp_path: Path, word: str) -> None:
    made = publication.prepare(saved(tmp_path / "a_ti.ckpt", word or "<>"))
    for path in folder.write(made, tmp_path / "out"):
        assert path.resolve().is_relative_to((tmp_path / "out").resolve())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_ti.ckpt", "out"]


@pytest.mark.parametrize(
    "there", ["README.md", "cat-toy.safetensors", "learned_embeds_2.safetensors", "pictures/0.png"]
)
def test_nothing_is_overwritten_unasked(publish: Call, learned: Path, drawn: Path, tmp_path: Path, there: str) -> None:
    target = tmp_path / "out"
    (target / there).parent.mkdir(parents=True)
    (target / there).write_text("mine")
    (target / "notes.txt").write_text("mine")
    arguments = ("--source", learned, "--target", target, "--pictures", drawn)
    code, _, error = publish(*arguments)
    assert code == 2
    assert error == f"error: --target {target / there} is there already; --overwrite replaces it\n"
    assert (target / there).read_text() == "mine"
    assert len([path for path in target.rglob("*") if path.is_file()]) == 2
    assert publish(*arguments, "--overwrite")[0] == 0
    assert (target / there).read_bytes() != b"mine"
    assert (target / "notes.txt").read_text() == "mine"
    again = ("--source", target, "--target", target, "--pictures", target / "pictures/0.png", "--overwrite")
    assert publish(*again)[0] == 0  # from itself
    assert pictures.recipe(target / "pictures/0.png")["seed"] == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "@out"], "--source is missing"),
        (["--source", "@a_7_ti.ckpt"], "--target is missing"),
        (["--source", "@nothing.ckpt", "--target", "@out"], "there is no file"),
        (["--source", "@a_7_ti.ckpt", "--target", "@a_7_ti.ckpt"], "is no folder"),
        (["--source", "@a_7_ti.ckpt", "--target", "@out", "--pictures", "@no.png"], "there is no picture"),
        (["--source", "@a_7_ti.ckpt", "--target", "@out", "--pictures", "@a_7_ti.ckpt"], "is no picture, or damaged"),
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
    exchange.write(exchange.Learned("clip", {"<a>": rows, "<b>": rows}), tmp_path / "learned_embeds.bin", "diffusers")
    with pytest.raises(UserError, match="holds several words"):
        publication.prepare(tmp_path)


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
    assert files.load(path).placeholder == "learned_embeds"
    (tmp_path / "token_identifier.txt").write_text("<cät>\n", encoding="utf-8")
    (tmp_path / "type_of_concept.txt").write_text("object")
    assert [each.placeholder for each in files.load_all(path if as_file else tmp_path)] == ["<cät>"]
    torch.save({"<own>": torch.ones(2, 3)}, tmp_path / "learned_embeds.bin")
    torch.save({"<own>": torch.ones(2, 5)}, tmp_path / "learned_embeds_2.bin")
    assert files.load(tmp_path / "learned_embeds.bin").placeholder == "<own>"
    (tmp_path / "token_identifier.txt").write_bytes(b"\xff\xfe")
    save_file({name: values.numpy() for name, values in rows.items()}, tmp_path / "learned_embeds.safetensors")
    with pytest.raises(UserError, match=r"token_identifier\.txt does not hold a word"):
        files.load(tmp_path)
