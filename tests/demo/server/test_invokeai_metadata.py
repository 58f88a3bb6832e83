"""Generation parameters in the three forms that InvokeAI has written them in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from demo.app.server import compel_prompt, image_texts, invokeai_metadata
from gm.errors import UserError
from tests.demo.server.test_foreign_parameters import png

METADATA: dict[str, Any] = {
    "app_version": "5.6.0",
    "generation_mode": "sdxl_img2img",
    "positive_prompt": "a (red cat)1.2 on a table--",
    "negative_prompt": "blurry",
    "positive_style_prompt": "oil painting",
    "negative_style_prompt": "",
    "width": 832,
    "height": 1216,
    "seed": 340088185,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "cfg_rescale_multiplier": 0.7,
    "steps": 30,
    "scheduler": "dpmpp_2m_k",
    "seamless_x": False,
    "clip_skip": 0,
    "model": {"key": "1", "hash": "blake3:2", "name": "Juggernaut XL", "base": "sdxl", "type": "main"},
    "vae": {"key": "3", "hash": "blake3:4", "name": "sdxl-vae-fp16-fix", "base": "sdxl", "type": "vae"},
    "loras": [{"model": {"name": "detail", "base": "sdxl"}, "weight": 0.75}],
    "controlnets": [],
    "strength": 0.4,
    "refiner_steps": 20,
}


def test_metadata_gives_its_options_and_names_the_rest() -> None:
    parameters = invokeai_metadata.parse(METADATA)
    assert parameters.program == "InvokeAI"
    assert parameters.options == {
        "prompt": "a (red cat:1.2) on a (table:0.81)",
        "negative_prompt": "blurry",
        "width": 832,
        "height": 1216,
        "seed": 340088185,
        "guidance_scale": 7.5,
        "guider": "rescaled",
        "guidance_rescale": 0.7,
        "sample_step": 30,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "strength": 0.4,
    }
    assert parameters.unused == [
        "init image: not in the file; upload it",
        "positive style prompt: oil painting",
        "Model: Juggernaut XL",
        "VAE: sdxl-vae-fp16-fix",
        "LoRA: detail:0.75",
        "refiner steps: 20",
    ]


@pytest.mark.parametrize(
    ("fields", "options", "unused"),
    [
        ({"scheduler": "euler_a"}, {"sampler": "euler_ancestral", "schedule": "legacy"}, []),
        (
            {"scheduler": "euler", "model": {"name": "new", "base": "sdxl"}},
            {"sampler": "euler", "schedule": "leading"},
            ["Model: new"],
        ),
        ({"scheduler": "pndm"}, {"sampler": "plms", "schedule": "leading"}, []),
        ({"scheduler": "unipc_k"}, {}, ["scheduler: unipc_k"]),
        ({"model": {"model_name": "old", "base_model": "sd-1"}}, {}, ["Model: old"]),
        ({"loras": [{"lora": {"model_name": "old"}, "weight": 1.0}]}, {}, ["LoRA: old:1.0"]),
        ({"generation_mode": "flux_txt2img"}, {}, ["generation mode: flux_txt2img"]),
        ({"generation_mode": "inpaint"}, {}, ["init image: not in the file; upload it, and its mask"]),
        ({"cfg_scale": [7.5, 5.0], "seed": -1}, {}, ["cfg scale: [7.5, 5.0]", "seed: -1"]),
        ({"positive_prompt": None, "negative_style_prompt": None}, {"prompt": ""}, []),
        ({"clip_skip": 2, "seamless_y": True}, {}, ["clip skip: 2", "seamless y: True"]),
    ],
)
def test_metadata_of_other_versions_and_models(
    fields: dict[str, Any], options: dict[str, Any], unused: list[str]
) -> None:
    parameters = invokeai_metadata.parse(fields)
    assert parameters.options == {"prompt": "", "negative_prompt": "", **options}
    assert parameters.unused == unused


def test_metadata_of_version_2_has_the_negative_prompt_in_brackets() -> None:
    image = {
        "prompt": [{"prompt": "a red cat [blurry] on a table [low quality]", "weight": 1.0}],
        "steps": 50,
        "cfg_scale": 7.5,
        "threshold": 0,
        "perlin": 0,
        "width": 512,
        "height": 640,
        "seed": 7,
        "type": "img2img",
        "strength_steps": 0.6,
        "orig_hash": "ab",
        "sampler": "k_dpmpp_2_a",
        "variations": [],
        "upscale": [2, 0.75],
    }
    metadata = {"model": "stable diffusion", "model_id": "sd-1.5", "app_id": "invoke-ai/InvokeAI", "image": image}
    parameters = invokeai_metadata.parse_sd(metadata)
    assert parameters.options == {
        "prompt": "a red cat on a table",
        "negative_prompt": "blurry low quality",
        "sample_step": 50,
        "guidance_scale": 7.5,
        "width": 512,
        "height": 640,
        "seed": 7,
        "strength": 0.6,
        "sampler": "dpmpp_2s_ancestral",
    }
    assert parameters.unused == ["Model: sd-1.5", "init image: not in the file; upload it", "upscale: [2, 0.75]"]


def test_metadata_of_version_2_of_a_grid_is_that_of_its_first_image() -> None:
    parts = [{"prompt": "a cat", "weight": 0.5}, {"prompt": "a dog", "weight": 0.5}]
    parameters = invokeai_metadata.parse_sd({"images": [{"prompt": parts, "seed": 1}, {"prompt": "x", "seed": 2}]})
    assert parameters.options == {"prompt": "a cat a dog", "negative_prompt": "", "seed": 1}
    assert parameters.unused == ["Prompt weights: 0.5, 0.5"]
    with pytest.raises(UserError, match="InvokeAI metadata has no image"):
        invokeai_metadata.parse_sd({"images": []})


@pytest.mark.parametrize(
    ("text", "prompt", "options", "unused"),
    [
        (
            '"a half-red cat -ish, 35mm" -s50 -W512 -H640 -C7.5 -Ak_lms',
            "a half-red cat -ish, 35mm",
            {"sample_step": 50, "width": 512, "height": 640, "guidance_scale": 7.5, "sampler": "lms"},
            [],
        ),
        (
            "a cat -s 20 -S 7 -I in.png -A ddim --fit -f 0.6 -G 0.8 --perlin 0.1 # model_id=sd-1.4",
            "a cat",
            {"sample_step": 20, "seed": 7, "sampler": "ddim", "strength": 0.6},
            [
                *("init image: not in the file; upload it", "fit: True", "facetool strength: 0.8", "perlin: 0.1"),
                "Model: sd-1.4",
            ],
        ),
        ("a cat", "a cat", {}, []),
    ],
)
def test_switches_of_the_command_line_are_read(
    text: str, prompt: str, options: dict[str, Any], unused: list[str]
) -> None:
    parameters = invokeai_metadata.parse_dream(text)
    assert parameters.options == {"prompt": prompt, "negative_prompt": "", **options}
    assert parameters.unused == unused


@pytest.mark.parametrize(
    ("compel", "prompt"),
    [
        ("cat++, hot-dog", "(cat:1.21), hot-dog"),
        ("(a cat)- and (dog)0.5", "(a cat:0.9) and (dog:0.5)"),
        ("fire ((flames))", "fire flames"),
        ("(a (red)+ cat)1.2", "(a (red:1.1) cat:1.2)"),
        ("[cat], ratio 16:9 (16:9)2", r"\[cat\], ratio 16:9 (16\:9:2)"),
        (r"a \(b\) (c", r"a \(b\) \(c"),
        ("c)2 + d", r"c\)2 + d"),
        ("<my-toy>, a--b", "<my-toy>, a--b"),
        ('("a", "b").blend(0.7, 0.3)', '("a", "b").blend(0.7, 0.3)'),
        ("", ""),
    ],
)
def test_prompts_of_compel_keep_their_weights(compel: str, prompt: str) -> None:
    assert compel_prompt.translate(compel) == prompt


def test_images_of_invokeai_are_read_by_their_newest_form() -> None:
    old = json.dumps({"image": {"prompt": "old", "seed": 2}})
    for texts, seed in (
        ({"invokeai_metadata": json.dumps(METADATA), "sd-metadata": old, "Dream": "a -S3"}, 340088185),
        ({"sd-metadata": old, "Dream": "a -S3"}, 2),
        ({"Dream": "a -S3"}, 3),
    ):
        assert image_texts.read(png(**texts), "a.png").options["seed"] == seed
    with pytest.raises(UserError, match="are damaged"):
        image_texts.read(png(invokeai_metadata="[]"), "a.png")
