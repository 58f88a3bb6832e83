"""Generation parameters: all that repeats an image, and AUTOMATIC1111's infotext."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from gm import config as configuration
from gm.config import Config, SamplingConfig, cli
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.errors import UserError
from gm.sampling import image_files, metadata, resolution
from gm.sampling.request import PromptGrid
from tests.sampling.generation import image_request

PROMPT, SEED = "a <toy>, red", 9
BLACK = np.zeros((4, 4, 3), np.uint8)


def embedding(value: float = 1.0) -> Embedding:
    vectors = np.full((1, 4), value, np.float32)
    return Embedding("<toy>", {"clip_l": vectors, "clip_g": vectors})


@pytest.fixture
def embedding_file(tmp_path: Path) -> Path:
    embedding_io.save(embedding(), tmp_path / "toy.ckpt")
    return tmp_path / "toy.ckpt"


def config(tmp_path: Path, **sampling: Any) -> Config:
    return configuration.load(None, {"sampling": {"save_path": str(tmp_path), **sampling}})


def parameters(config: Config, count: int = 1, **overrides: Any) -> list[dict[str, Any]]:
    requests = [image_request(PROMPT, SEED, config.model)] * count
    return metadata.generation_parameters(config, PromptGrid(requests, overrides), "abc")


def saved(config: Config, folder: Path, number: int = 0) -> Path:
    return image_files.save(BLACK, parameters(config, number + 1)[number], folder, "image")


def test_an_image_alone_gives_its_config_back(tmp_path: Path, embedding_file: Path) -> None:
    original = configuration.load(
        "configs/training/tiny_textual_inversion.yaml",
        {
            "run": {"pooling": "argmax", "weight": "some/weights.ckpt"},
            "sampling": {
                "textual_inversion_weight": [str(embedding_file)],
                "negative_prompt": "blurry, ${x}",
                "sampler": "heun",
                "num_cols": 3,
                "seed": 7,
                "save_path": "elsewhere",
                "guidance_scale": 2.5,
            },
        },
    )
    path = saved(original, tmp_path)
    again = cli.parse("", ("run", "sampling"), ["--parameters_from", str(path)], metadata.config_overrides)
    assert again.model == original.model
    own = {"prompt": PROMPT, "seed": SEED, "num_cols": 1, "save_path": "outputs", "base_model": "abc"}
    assert again.sampling == dataclasses.replace(original.sampling, **own)
    assert (again.run.pooling, again.run.weight) == ("argmax", "some/weights.ckpt")
    flags = ["--parameters_from", str(path), "--seed", "10", "--sample_step", "5", "--num_cols", "2"]
    changed = cli.parse("", ("run", "sampling"), flags, metadata.config_overrides)
    assert changed.sampling == dataclasses.replace(again.sampling, seed=10, sample_step=5, num_cols=2)


def test_the_files_of_single_networks_are_in_the_parameters(tmp_path: Path) -> None:
    networks = {"vae": "vaes/sdxl_vae.safetensors", "unet": "lightning/unet"}
    original = configuration.load(None, {"run": networks, "sampling": {"save_path": str(tmp_path)}})
    sections = metadata.config_overrides(saved(original, tmp_path))
    assert configuration.load(None, sections).run.networks == networks
    (each,) = parameters(original)
    text = metadata.a1111_infotext(each, resolution.from_options(original.sampling, original.model), [])
    fields = parse_infotext(text)
    assert (fields["VAE"], fields["UNet"]) == ("sdxl_vae.safetensors", "unet")


def test_loras_are_in_the_parameters_with_strength_and_hash(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lora = tmp_path / "detail, fine.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, lora)
    digest = hashlib.sha256(np.zeros(3, np.float32).tobytes()).hexdigest()[:12]
    original = configuration.load(
        None, {"run": {"lora_weight": [f"{lora}:-0.5"]}, "sampling": {"save_path": str(tmp_path)}}
    )
    (each,) = parameters(original)
    assert each["loras"] == [{"name": "detail, fine", "strength": -0.5, "hash": digest}]
    text = metadata.a1111_infotext(each, resolution.from_options(original.sampling, original.model), [])
    fields = parse_infotext(text)
    assert fields["Prompt"] == f"{PROMPT} <lora:detail, fine:-0.5>"
    assert fields["Lora hashes"] == f"detail, fine: {digest}"
    path = saved(original, tmp_path)
    again = cli.parse("", ("run", "sampling"), ["--parameters_from", str(path)], metadata.config_overrides)
    assert again.run.lora_weight == [f"{lora}:-0.5"]
    assert again.sampling.prompt == PROMPT
    assert caplog.text == ""
    save_file({"a": np.ones(3, np.float32)}, lora)
    metadata.config_overrides(path)
    assert f"{lora} has changed since {path} was generated with it" in caplog.text
    lora.unlink()
    with pytest.raises(
        UserError, match=f"the generation parameters of .* need {lora}, which does not exist; restore it"
    ):
        metadata.config_overrides(path)


def test_every_option_that_changes_an_image_is_in_its_parameters(tmp_path: Path) -> None:
    (found,) = parameters(config(tmp_path))
    names = {field.name for field in dataclasses.fields(SamplingConfig)}
    assert names - set(found) == {"save_path", "num_cols", "num_rows", "interactive", "preview_interval"}
    json.dumps(found)


def test_options_of_a_grid_stand_above_those_of_the_run(tmp_path: Path) -> None:
    (found,) = parameters(config(tmp_path, sample_step=7, width=64), width=24, negative_prompt="blurry")
    assert (found["sample_step"], found["width"], found["negative_prompt"]) == (7, 24, "blurry")


def test_the_index_of_noise_from_a_file_is_that_of_the_image(tmp_path: Path) -> None:
    np.save(tmp_path / "n.npy", np.zeros((5, 4, 2, 2)))
    original = config(tmp_path, init_latent_path=str(tmp_path / "n.npy"), init_latent_index=1)
    sections = metadata.config_overrides(saved(original, tmp_path, number=2))
    assert sections["sampling"]["init_latent_index"] == 3


def test_a_changed_file_warns_and_a_missing_file_is_refused(
    tmp_path: Path, embedding_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(config(tmp_path, textual_inversion_weight=[str(embedding_file)]), tmp_path)
    metadata.config_overrides(path)
    assert caplog.text == ""
    embedding_io.save(embedding(0.0), embedding_file)
    metadata.config_overrides(path)
    assert f"{embedding_file} has changed since {path} was generated with it" in caplog.text
    embedding_file.unlink()
    message = r"the generation parameters of .*image_00000.png need .*toy.ckpt, which does not exist"
    with pytest.raises(UserError, match=message):
        metadata.config_overrides(path)


def test_parameters_of_earlier_versions_are_read(tmp_path: Path) -> None:
    old = {"model": "SD-XL-base-1.0", "prompt": "a cat", "seed": 3, "pooling": "argmax", "device_target": "Ascend"}
    path = image_files.save(BLACK, old, tmp_path, "image")
    assert metadata.config_overrides(path) == {
        "run": {"pooling": "argmax"},
        "sampling": {"prompt": "a cat", "seed": 3},
    }


def test_images_without_parameters_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "bare.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(saved(config(tmp_path), tmp_path).read_bytes()[:900])
    for name, message in (
        ("bare.png", "holds no generation parameters"),
        ("text.png", "is not a readable image"),
        ("cut.png", "is not a readable image|holds no generation parameters"),
        ("nowhere.png", "nowhere.png is not a file"),
    ):
        with pytest.raises(UserError, match=message):
            metadata.config_overrides(tmp_path / name)


def test_infotext_is_parsed_as_automatic1111_does(tmp_path: Path) -> None:
    original = config(
        tmp_path,
        negative_prompt="blurry: very, very",
        sampler="EulerAncestralSampler",
        schedule="karras",
        task="img2img",
        strength=0.4,
        add_pipeline=True,
    )
    (each,) = parameters(original)
    text = metadata.a1111_infotext(each, resolution.from_options(original.sampling, original.model), [embedding()])
    fields = parse_infotext(text)
    assert re.fullmatch("<toy>: [0-9a-f]{12}", fields.pop("TI hashes"))
    assert fields == {
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
        "Version": "Textual inversion on MindSpore",
    }
    path = image_files.save(BLACK, each, tmp_path, "image", text)
    with Image.open(path) as image:
        assert image.info["parameters"] == text


def parse_infotext(text: str) -> dict[str, str]:
    """Return the fields of a text whose last line is `name: value, name: "value, in quotes"`."""
    *prompts, last = text.split("\n")
    cut = next((k for k, line in enumerate(prompts) if line.startswith("Negative prompt:")), len(prompts))
    fields = {"Prompt": "\n".join(prompts[:cut])}
    if cut < len(prompts):
        fields["Negative prompt"] = "\n".join(prompts[cut:]).removeprefix("Negative prompt: ")
    for name, value in re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last):
        fields[name] = json.loads(value) if value.startswith('"') else value
    return fields


def test_a_chosen_placeholder_token_is_repeated_and_its_file_compared(
    tmp_path: Path, embedding_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = [f"{embedding_file}=<other>"]
    path = saved(config(tmp_path, textual_inversion_weight=weights), tmp_path)
    assert metadata.config_overrides(path)["sampling"]["textual_inversion_weight"] == weights
    assert caplog.text == ""
    embedding_io.save(embedding(0.0), embedding_file)
    metadata.config_overrides(path)
    assert f"{embedding_file} has changed since" in caplog.text


def test_clip_skip_is_in_the_infotext_where_it_is_not_1(tmp_path: Path) -> None:
    original = config(tmp_path)
    (each,) = parameters(original)
    size = resolution.from_options(original.sampling, original.model)
    assert "Clip skip" not in metadata.a1111_infotext(each, size, [])
    each["model"]["text_encoder_1"]["clip_skip"] = 2
    assert parse_infotext(metadata.a1111_infotext(each, size, []))["Clip skip"] == "2"
