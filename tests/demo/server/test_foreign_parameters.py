"""Generation parameters of AUTOMATIC1111 and ComfyUI, and of images that visitors give."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from demo.app.server import a1111_infotext, comfyui_prompt, image_texts
from gm.errors import UserError
from gm.sampling import image_files

INFOTEXT = """a (red:1.2) cat, <lora:detail:0.5>
on a table
Negative prompt: blurry, low quality
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1234567890, Size: 512x768, \
Model hash: abc, Model: "dream, shaper", Clip skip: 2, Denoising strength: 0.6, TI hashes: "x: 1", Version: v1.10.1"""

WORKFLOW: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 7,
            "steps": 25,
            "cfg": 6.5,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["4", 0],
            "positive": ["9", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 832, "height": 1216, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["10", 0], "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "9": {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["6", 0], "negative": ["7", 0]}},
    "10": {"class_type": "PrimitiveString", "inputs": {"value": "a red cat"}},
}


def png(**texts: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value)
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG", pnginfo=info)
    return content.getvalue()


def test_infotext_gives_its_options_and_names_the_rest() -> None:
    found = a1111_infotext.parse(INFOTEXT)
    assert found.options == {
        "prompt": "a (red:1.2) cat,\non a table",
        "negative_prompt": "blurry, low quality",
        "sample_step": 20,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "guidance_scale": 7.5,
        "seed": 1234567890,
        "width": 512,
        "height": 768,
        "strength": 0.6,
    }
    assert found.unused == ["LoRA: detail:0.5", "Model: dream, shaper", "Clip skip: 2"]


@pytest.mark.parametrize(
    ("fields", "options", "unused"),
    [
        ("Sampler: DPM++ 2M Karras", {"sampler": "dpmpp_2m", "schedule": "karras"}, []),
        ("Sampler: Euler a", {"sampler": "euler_ancestral", "schedule": "legacy"}, []),
        ("Sampler: DPM adaptive", {}, ["Sampler: DPM adaptive"]),
        ("Schedule type: Exponential", {}, ["Schedule type: Exponential"]),
        ("Seed: -1", {}, ["Seed: -1"]),
        ("Size: 1e9x7", {}, ["Size: 1e9x7"]),
    ],
)
def test_infotext_of_other_versions(fields: str, options: dict[str, Any], unused: list[str]) -> None:
    found = a1111_infotext.parse(f"a cat\nSteps: 5, CFG scale: 3, {fields}")
    assert found.options.items() >= {"prompt": "a cat", "sample_step": 5, "guidance_scale": 3.0, **options}.items()
    assert found.unused == unused


def test_infotext_without_fields_is_a_prompt() -> None:
    assert a1111_infotext.parse("a cat, 12: 30\nNegative prompt: dog").options == {
        "prompt": "a cat, 12: 30",
        "negative_prompt": "dog",
    }


def test_our_infotext_is_read_back() -> None:
    text = "a <toy>\nSteps: 3, Sampler: Heun, Schedule type: SGM Uniform, CFG scale: 5.0, Seed: 8, Size: 16x24"
    options = a1111_infotext.parse(text).options
    assert (options["prompt"], options["sampler"], options["schedule"]) == ("a <toy>", "heun", "trailing")
    assert (options["width"], options["height"], options["seed"]) == (16, 24, 8)


def test_comfyui_workflow_is_followed_to_prompts_and_size() -> None:
    found = comfyui_prompt.parse(WORKFLOW)
    assert found.options == {
        "prompt": "a red cat",
        "negative_prompt": "blurry",
        "seed": 7,
        "sample_step": 25,
        "guidance_scale": 6.5,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "width": 832,
        "height": 1216,
    }
    assert found.unused == ["Model: sdxl.safetensors"]


def test_comfyui_workflow_of_an_init_image_gives_its_strength() -> None:
    encode = {"class_type": "VAEEncode", "inputs": {"pixels": ["11", 0]}}
    inputs = {**WORKFLOW["3"]["inputs"], "denoise": 0.4, "scheduler": "beta", "negative": ["12", 0]}
    nodes = {
        **WORKFLOW,
        "3": {"class_type": "KSampler", "inputs": inputs},
        "5": encode,
        "12": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["6", 0]}},
    }
    found = comfyui_prompt.parse(nodes)
    assert (found.options["strength"], found.options["negative_prompt"]) == (0.4, "")
    assert "width" not in found.options
    assert {"scheduler: beta", "init image: not in the file; upload it"} <= set(found.unused)


def test_workflows_with_circles_and_damage_end() -> None:
    circle = {"class_type": "Any", "inputs": {"conditioning": ["6", 0], "value": ["6", 0]}}
    nodes = {**WORKFLOW, "6": circle, "10": circle, "5": 7, "4": {"class_type": "X", "inputs": []}}
    found = comfyui_prompt.parse(nodes)
    assert found.options["prompt"] == ""
    assert "prompt: made by nodes that are not known here" in found.unused
    for workflow in ({}, {"1": {"class_type": "SaveImage", "inputs": {}}}, []):
        with pytest.raises(UserError, match="no KSampler"):
            comfyui_prompt.parse(workflow)


def test_images_give_their_parameters_ours_first() -> None:
    ours = json.dumps({"prompt": "ours", "seed": 1})
    found = image_texts.read(png(generation_parameters=ours, parameters=INFOTEXT), "a.png")
    assert (found.program, found.options) == ("", {"prompt": "ours", "seed": 1})
    assert image_texts.read(png(parameters=INFOTEXT), "a.png").program == "AUTOMATIC1111"
    assert image_texts.read(png(prompt=json.dumps(WORKFLOW)), "a.png").options["seed"] == 7


@pytest.mark.parametrize("suffix", ["JPEG", "WEBP"])
def test_exif_comments_of_automatic1111_are_read(suffix: str) -> None:
    image, content = Image.new("RGB", (8, 8)), io.BytesIO()
    exif = image.getexif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + INFOTEXT.encode("utf-16-be")
    image.save(content, suffix, exif=exif)
    assert image_texts.read(content.getvalue(), "a.jpg").options["seed"] == 1234567890


def test_images_without_readable_parameters_are_named() -> None:
    for content, message in (
        (png(), "a.png holds no generation parameters"),
        (b"\x89PNG\r\n\x1a\n damaged", "a.png is not a readable"),
        (b"", "a.png is empty"),
        (png(prompt="[" * 100_000), "the generation parameters in a.png are damaged"),
        (png(generation_parameters="5"), "the generation parameters in a.png are damaged"),
    ):
        with pytest.raises(UserError, match=message):
            image_texts.read(content, "a.png")


def test_pixels_of_given_images_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert image_texts.read(png(parameters=INFOTEXT), "a.png").options["sample_step"] == 20


def test_infotext_of_an_image_is_shown_or_made(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    path = image_files.save(pixels, {"prompt": "a cat", "seed": 3}, tmp_path, "image", INFOTEXT)
    assert image_texts.infotext(path, {}) == INFOTEXT
    older = image_files.save(pixels, {}, tmp_path, "image")
    assert image_texts.infotext(older, {"prompt": "a cat", "seed": 3, "model": {}}) == "prompt: a cat\nseed: 3"
