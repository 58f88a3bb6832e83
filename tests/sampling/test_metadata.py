"""Recipes: what an image needs to be made again, in the words of this toolkit and of AUTOMATIC1111."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gm import config as configuration
from gm.config import Config, SamplingConfig, cli
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.errors import UserError
from gm.sampling import image_files, metadata, resolution
from gm.sampling.image_request import ImageRequest

ORDER = ImageRequest("a <toy>, red", 9)


@pytest.fixture
def concept(tmp_path: Path) -> Path:
    rows = np.ones((1, 4), np.float32)
    embedding_io.save(Embedding("<toy>", {"clip_l": rows, "clip_g": rows}), tmp_path / "toy.ckpt")
    return tmp_path / "toy.ckpt"


def config(tmp_path: Path, **sampling: Any) -> Config:
    return configuration.load(None, {"sampling": {"save_path": str(tmp_path), **sampling}})


def saved(config: Config, folder: Path, number: int = 0) -> Path:
    recipe = metadata.generation_parameters(config, config.sampling, [ORDER] * (number + 1), "abc")
    return image_files.save(np.zeros((4, 4, 3), np.uint8), recipe[number], folder, "image")


def test_a_recipe_alone_gives_the_config_back(tmp_path: Path, concept: Path) -> None:
    made = configuration.load(
        "configs/training/tiny_textual_inversion.yaml",
        {
            "run": {"pooling": "argmax", "precision": "float32", "weight": "some/weights.ckpt"},
            "sampling": {
                "textual_inversion_weight": [str(concept)],
                "negative_prompt": "blurry, ${x}",
                "sampler": "heun",
                "num_cols": 3,
                "seed": 7,
                "save_path": "elsewhere",
                "guidance_scale": 2.5,
            },
        },
    )
    path = saved(made, tmp_path)
    again = cli.parse("", ("run", "sampling"), ["--recipe", str(path)], metadata.overrides)
    assert again.model == made.model
    own = {"prompt": ORDER.prompt, "seed": 9, "num_cols": 1, "save_path": "outputs", "base_model": "abc"}
    assert again.sampling == dataclasses.replace(made.sampling, **own)
    assert (again.run.pooling, again.run.weight) == ("argmax", "some/weights.ckpt")
    flags = ["--recipe", str(path), "--seed", "10", "--sample_step", "5", "--num_cols", "2"]
    changed = cli.parse("", ("run", "sampling"), flags, metadata.overrides)
    assert changed.sampling == dataclasses.replace(again.sampling, seed=10, sample_step=5, num_cols=2)


def test_every_option_that_changes_an_image_is_in_its_recipe(tmp_path: Path) -> None:
    (recipe,) = metadata.generation_parameters(config(tmp_path), SamplingConfig(), [ORDER], "abc")
    names = {field.name for field in dataclasses.fields(SamplingConfig)}
    assert names - set(recipe) == {"save_path", "num_cols", "num_rows", "preview_interval"}
    json.dumps(recipe)


def test_noise_from_a_file_is_found_again(tmp_path: Path) -> None:
    np.save(tmp_path / "n.npy", np.zeros((5, 4, 2, 2)))
    made = config(tmp_path, init_latent_path=str(tmp_path / "n.npy"), init_latent_index=1)
    sections = metadata.overrides(saved(made, tmp_path, number=2))
    assert sections["sampling"]["init_latent_index"] == 3


def test_a_file_that_changed_is_warned_about_and_one_that_is_gone_is_named(
    tmp_path: Path, concept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(config(tmp_path, textual_inversion_weight=[str(concept)]), tmp_path)
    metadata.overrides(path)
    assert caplog.text == ""
    rows = np.zeros((1, 4), np.float32)
    embedding_io.save(Embedding("<toy>", {"clip_l": rows, "clip_g": rows}), concept)
    metadata.overrides(path)
    assert f"{concept} is not the file that {path} was made with" in caplog.text
    concept.unlink()
    with pytest.raises(UserError, match=r"the recipe of .*image_00000.png needs .*toy.ckpt, which is not there"):
        metadata.overrides(path)


def test_recipes_of_before_are_read(tmp_path: Path) -> None:
    old = {"model": "SD-XL-base-1.0", "prompt": "a cat", "seed": 3, "pooling": "argmax", "device_target": "Ascend"}
    path = image_files.save(np.zeros((4, 4, 3), np.uint8), old, tmp_path, "image")
    assert metadata.overrides(path) == {"run": {"pooling": "argmax"}, "sampling": {"prompt": "a cat", "seed": 3}}


def test_images_without_a_recipe_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "bare.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(saved(config(tmp_path), tmp_path).read_bytes()[:900])
    for name, message in (
        ("bare.png", "holds no recipe"),
        ("text.png", "is no image that can be read"),
        ("cut.png", "is no image that can be read|holds no recipe"),
        ("nowhere.png", "there is not a file .*nowhere.png"),
    ):
        with pytest.raises(UserError, match=message):
            metadata.overrides(tmp_path / name)


def test_the_words_of_automatic1111(tmp_path: Path) -> None:
    made = config(
        tmp_path,
        negative_prompt="blurry: very, very",
        sampler="EulerAncestralSampler",
        schedule="karras",
        task="img2img",
        strength=0.4,
        add_pipeline=True,
    )
    (recipe,) = metadata.generation_parameters(made, made.sampling, [ORDER], "abc")
    rows = np.ones((1, 4), np.float32)
    text = metadata.a1111_infotext(
        recipe, resolution.image_size(made.sampling, made.model), [Embedding("<toy>", {"clip_l": rows, "clip_g": rows})]
    )
    found = read_as_webui_does(text)
    assert re.fullmatch("<toy>: [0-9a-f]{12}", found.pop("TI hashes"))
    assert found == {
        "Prompt": "a <toy>, red",
        "Negative prompt": "blurry: very, very",
        "Steps": "40",
        "Sampler": "Euler a",
        "Schedule type": "Karras",
        "CFG scale": "5.0",
        "Seed": "9",
        "Size": "1024x1024",
        "Model": "sd_xl_base_1.0_ms",
        "Denoising strength": "0.4",
        "Refiner": "sd_xl_refiner_1.0_ms",
        "Refiner switch at": "0.85",
        "Version": "SDXL textual inversion on MindSpore",
    }
    path = image_files.save(np.zeros((4, 4, 3), np.uint8), recipe, tmp_path, "image", text)
    with Image.open(path) as image:
        assert image.info["parameters"] == text


def read_as_webui_does(text: str) -> dict[str, str]:
    """Return the fields of a text that the last line ends as `name: value, name: "value, in quotes"`."""
    *words, last = text.split("\n")
    cut = next((k for k, line in enumerate(words) if line.startswith("Negative prompt:")), len(words))
    found = {"Prompt": "\n".join(words[:cut])}
    if cut < len(words):
        found["Negative prompt"] = "\n".join(words[cut:]).removeprefix("Negative prompt: ")
    for name, value in re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last):
        found[name] = json.loads(value) if value.startswith('"') else value
    return found
