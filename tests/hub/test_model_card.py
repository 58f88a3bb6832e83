"""gm/hub/model_card.py: contents of the model card, and that its commands are valid."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file

from gm.config import cli
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import NO_POOLING, Embedding
from gm.hub import export, layout
from tests.hub.embedding_files import METADATA, read_card, save_embedding
from tests.project import Call

ROOT = Path(__file__).resolve().parents[2]


def test_the_card_shows_metadata_images_and_usage(
    publish: Call, embedding_path: Path, generated_image: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    flags = ("--license", "openrail++", "--images", generated_image, generated_image)
    assert publish("--source", embedding_path, "--target", target, *flags)[0] == 0
    metadata, text = read_card(target)
    assert metadata["license"] == "openrail++"
    assert metadata["base_model"] == "stabilityai/stable-diffusion-xl-base-1.0"
    assert metadata["instance_prompt"] == "a picture in the style of <cat-toy>"
    assert {"text-to-image", "stable-diffusion-xl", "textual_inversion"} <= set(metadata["tags"])
    assert [each["output"]["url"] for each in metadata["widget"]] == ["images/0.png", "images/1.png"]
    assert metadata["widget"][0]["text"] == "a <cat-toy> | `red`"
    assert ModelCard((target / "README.md").read_text()).data.to_dict()["base_model"] == metadata["base_model"]
    assert "prompt `` a <cat-toy> | `red` ``, seed `11`, sampler `euler`" in text
    assert all((target / place).is_file() for place in re.findall(r"!\[\]\((.*?)\)", text))
    for name in ("learned_embeds.safetensors", "learned_embeds_2.safetensors", "cat-toy.safetensors"):
        assert name in text
    assert "from_pretrained('stabilityai/stable-diffusion-xl-base-1.0'" in text
    (parameters,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert json.loads(parameters) == embedding_io.load(target).metadata


def test_the_command_of_this_toolkit_is_valid(embedding_path: Path, tmp_path: Path) -> None:
    for pooling in ("end_of_text", "argmax", "unknown"):
        save_embedding(embedding_path, "<it's>", pooling)
        layout.write(export.prepare(embedding_path), tmp_path / "out", overwrite=True)
        (command,) = re.findall(r"```bash\n(.*?)```", read_card(tmp_path / "out")[1], re.DOTALL)
        python, script, *arguments = shlex.split(command.replace("\\\n", " "))
        assert (python, (ROOT / script).is_file()) == ("python", True)
        config = cli.parse("", ("run", "sampling"), arguments)
        assert config.sampling.prompt == "a picture in the style of <it's>"
        assert config.run.pooling == ("argmax" if pooling == "argmax" else "end_of_text")
        assert ("49407" in read_card(tmp_path / "out")[1]) is (pooling == "end_of_text")


def test_flags_take_precedence_over_the_metadata(publish: Call, embedding_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    flags = {
        "--placeholder_token": "<dog>",
        "--type_of_concept": "face",
        "--instance_prompt": "<dog>: `yes` ---\n# no",
        "--base_model": "me/mine",
    }
    arguments = [part for pair in flags.items() for part in pair]
    assert publish("--source", embedding_path, "--target", target, *arguments)[0] == 0
    metadata, text = read_card(target)
    assert (metadata["base_model"], metadata["instance_prompt"]) == ("me/mine", "<dog>: `yes` --- # no")
    assert "license" not in metadata
    assert "No license is given" in text
    assert re.findall(r"^# .*", text, re.MULTILINE) == ["# dog"]
    assert (target / "type_of_concept.txt").read_text() == "face"
    assert embedding_io.load(target).placeholder_token == "<dog>"
    assert (target / "dog.safetensors").is_file()


def test_a_file_without_metadata_is_an_object(tmp_path: Path) -> None:
    vectors = {"clip_l": np.ones((1, 3), np.float32), "clip_g": np.ones((1, 5), np.float32)}
    save_file(vectors, tmp_path / "b.safetensors")
    layout.write(export.prepare(tmp_path / "b.safetensors"), tmp_path / "out")
    metadata, text = read_card(tmp_path / "out")
    assert metadata["instance_prompt"] == "a photo of <b>"
    assert "base_model" not in metadata
    assert "Training parameters" not in text
    for details in ({"recipe": 3}, {"recipe": {"concept": [1]}}, {"recipe": {"concept": {"learnable_property": []}}}):
        assert export.prepare(save_embedding(tmp_path / "c_ti.ckpt", metadata=details)).type_of_concept == "object"


def test_the_prompt_has_the_class_word_of_the_file(tmp_path: Path) -> None:
    path = save_embedding(tmp_path / "d_ti.ckpt", metadata={**METADATA, "class_word": "painting"})
    assert export.prepare(path).instance_prompt == "a picture in the style of <cat-toy> painting"


@pytest.mark.parametrize("parameters", ["no JSON", "[1]", "3", "[" * 100_000, '{"prompt": ["a"], "seed": {}}'])
def test_generation_parameters_of_another_program_are_ignored(
    tmp_path: Path, embedding_path: Path, parameters: str
) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("recipe", parameters)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=text)
    layout.write(export.prepare(embedding_path, [tmp_path / "a.png"]), tmp_path / "out")
    assert read_card(tmp_path / "out")[0]["widget"][0]["output"] == {"url": "images/0.png"}


def test_deeply_nested_metadata_is_left_out(tmp_path: Path) -> None:
    vectors = {"clip_l": np.ones((1, 3), np.float32), "clip_g": np.ones((1, 5), np.float32)}
    for opening, closing in (('{"a":', "}"), ("[", "]")):
        details = '{"step": 7, "deep": ' + opening * 700 + '"/secret"' + closing * 700 + "}"
        save_file(vectors, tmp_path / "b.safetensors", {"details": details})
        layout.write(export.prepare(tmp_path / "b.safetensors"), tmp_path / "out", overwrite=True)
        assert embedding_io.load(tmp_path / "out").metadata["step"] == 7
        assert "secret" not in (tmp_path / "out" / "README.md").read_text()


def test_loras_of_the_training_are_named(embedding_path: Path, tmp_path: Path) -> None:
    assert "LoRA" not in written_card(embedding_path, tmp_path)
    lora = {"name": "detail", "strength": 0.5, "hash": "0123456789ab"}
    save_embedding(embedding_path, metadata=METADATA | {"loras": [lora]})
    text = written_card(embedding_path, tmp_path)
    assert "should be used with them: `detail` (strength 0.5, hash `0123456789ab`)." in text


def written_card(embedding_path: Path, folder: Path) -> str:
    layout.write(export.prepare(embedding_path), folder / "out", overwrite=True)
    return read_card(folder / "out")[1]


@pytest.mark.parametrize(
    ("encoder", "base_model", "title", "weight"),
    [
        ("clip_l", None, "Stable Diffusion 1", "MODEL"),
        ("clip_h", None, "Stable Diffusion 2", "MODEL"),
        ("clip_l", "user/model", "user/model", "user/model"),
    ],
)
def test_the_card_of_one_text_encoder_names_its_weights(
    tmp_path: Path, encoder: str, base_model: str | None, title: str, weight: str
) -> None:
    embedding = Embedding("<toy>", {encoder: np.ones((2, 3), np.float32)}, NO_POOLING)
    embedding_io.save(embedding, tmp_path / "toy.ckpt")
    layout.write(export.prepare(tmp_path / "toy.ckpt", base_model=base_model), tmp_path / "out")
    text = read_card(tmp_path / "out")[1]
    assert f"an embedding for `{title}`, trained on" in text.replace("a textual inversion", "an")
    assert ": 2 vectors. Use it" in text
    assert f"--prompt 'a photo of <toy>' --weight {weight}\n" in text
