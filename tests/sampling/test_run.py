"""Whole sampling runs: the files written, images repeated from metadata, and mistakes found before weights are read."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gm.config import cli
from gm.embeddings import io as embedding_io
from gm.errors import UserError
from gm.lora import files as lora_files
from gm.lora.files import LoraRecord
from gm.sampling import image_files, metadata, run
from gm.sampling.pipeline import Pipeline
from gm.sampling.request import SamplingJob, prepare
from gm.text import prompt_parser
from gm.text.prompt_parser import PromptSchedule
from tests.project import Workshop
from tests.sampling.generation import image_request, toy


def placed(value: Any, folder: Path) -> Any:
    """Return options with @ being a file in `folder`."""
    if isinstance(value, dict):
        return {name: placed(each, folder) for name, each in value.items()}
    if isinstance(value, list):
        return [placed(each, folder) for each in value]
    return value.replace("@", f"{folder}/") if isinstance(value, str) else value


def images(job: SamplingJob, pipeline: Pipeline) -> list[Path]:
    """Run the job; return the images written, without the grids."""
    written = [event for event in run.run_job(pipeline, job) if isinstance(event, Path)]
    return [path for path in written if path.name.startswith("image")]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def job(workshop: Workshop, tmp_path: Path, **sampling: Any) -> SamplingJob:
    embedding_io.save(toy(), tmp_path / "toy.ckpt")
    options = {"textual_inversion_weight": [str(tmp_path / "toy.ckpt")], "save_path": str(tmp_path / "out")}
    return prepare(workshop.config(sampling={**options, **sampling}))


def test_a_run_writes_every_image_and_a_grid_for_each_prompt(
    workshop: Workshop, pipeline: Pipeline, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a <toy>\n\n  a red <toy>  \n")
    prompts = job(workshop, tmp_path, num_cols=2, num_rows=2, prompt=str(tmp_path / "prompts.txt"), seed=40)
    paths = [event for event in run.run_job(pipeline, prompts) if isinstance(event, Path)]
    names = [f"image_{k:05d}.png" for k in range(4)] + ["grid_00000.png"]
    names += [f"image_{k:05d}.png" for k in range(4, 8)] + ["grid_00001.png"]
    assert [p.name for p in paths] == names
    parameters = [image_files.read_parameters(p) for p in paths]
    assert [(each["prompt"], each["seed"]) for each in parameters[:5]] == [("a <toy>", 40 + k) for k in range(4)] + [
        ("a <toy>", 40)
    ]
    assert parameters[5]["prompt"] == "a red <toy>"
    run_again = [event for event in run.run_job(pipeline, prompts) if isinstance(event, Path)]
    assert run_again[0].name == "image_00008.png"
    assert run_again[0].read_bytes() == paths[0].read_bytes()


def test_each_prompt_is_parsed_once(
    workshop: Workshop, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []
    parse = prompt_parser.parse

    def recorded(text: str, *options: Any) -> PromptSchedule:
        parsed.append(text)
        return parse(text, *options)

    monkeypatch.setattr(prompt_parser, "parse", recorded)
    options = {"prompt": "a [<toy>|cat]", "negative_prompt": "blurry", "num_cols": 2, "batch_size": 2}
    sources = [str(workshop.folder / "images" / name) for name in ("0.png", "1.png")]
    images(job(workshop, tmp_path, task="img2img", img=sources, strength=0.4, **options), pipeline)
    assert parsed == ["a [<toy>|cat]", "blurry"]


def test_noise_from_a_file_replaces_the_seed(workshop: Workshop, pipeline: Pipeline, tmp_path: Path) -> None:
    config = workshop.model.config
    noise = image_request("", 40, config).initial_noise(config.vae)
    np.save(tmp_path / "n.npy", np.stack([-noise, noise, -noise]).astype(np.float64))
    from_file = {"init_latent_path": str(tmp_path / "n.npy"), "init_latent_index": 1}
    first, second = images(job(workshop, tmp_path, num_cols=2, **from_file), pipeline)
    (ours,) = images(job(workshop, tmp_path, seed=40), pipeline)
    assert np.array_equal(pixels(first), pixels(ours))
    assert not np.array_equal(pixels(second), pixels(ours))
    flags = ["--parameters_from", str(second), "--save_path", str(tmp_path / "again")]
    again = cli.parse("", ("run", "sampling"), flags, metadata.config_overrides)
    assert np.array_equal(pixels(images(prepare(again), pipeline)[0]), pixels(second))


def test_a_prompt_line_has_options_of_its_own(workshop: Workshop, pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a <toy>\na <toy> --d 7 --w 24 --s 2 --l 2.5 --n blurry\n")
    first, second = images(job(workshop, tmp_path, prompt=str(tmp_path / "prompts.txt")), pipeline)
    assert [image_files.read_parameters(path)["seed"] for path in (first, second)] == [42, 7]
    own = {"seed": 7, "width": 24, "sample_step": 2, "guidance_scale": 2.5, "negative_prompt": "blurry"}
    (alone,) = images(job(workshop, tmp_path, prompt="a <toy>", **own), pipeline)
    assert alone.read_bytes() == second.read_bytes()
    assert pixels(second).shape == (16, 24, 3)


TASKS: dict[str, dict[str, Any]] = {
    "txt2img": {"sampler": "dpmpp_2m_sde", "schedule": "karras", "prompt": "a (<toy>:1.2) BREAK [red|blue]"},
    "img2img": {"task": "img2img", "img": ["@images"], "strength": 0.7, "num_cols": 2, "prompt": "a <toy>"},
    "inpaint": {"task": "inpaint", "img": ["@images/1.png"], "mask": "@mask.png", "strength": 1.0},
    "refiner": {
        "add_pipeline": True,
        "stage2strength": 0.5,
        "pipeline_config": "@refiner.yaml",
        "pipeline_weight": "@refiner.ckpt",
    },
}


@pytest.mark.parametrize("task", TASKS)
def test_metadata_alone_repeats_an_image_bit_for_bit(
    workshop: Workshop, pipeline: Pipeline, tmp_path: Path, task: str
) -> None:
    Image.linear_gradient("L").resize((25, 20)).save(workshop.folder / "mask.png")
    *_, first = images(job(workshop, tmp_path, **placed(TASKS[task], workshop.folder)), pipeline)
    folder = ["--save_path", str(tmp_path / "again")]
    config = cli.parse("", ("run", "sampling"), ["--parameters_from", str(first), *folder], metadata.config_overrides)
    (again,) = images(prepare(config), pipeline)
    assert again.read_bytes() == first.read_bytes()
    flags = ["--parameters_from", str(first), "--seed", "1", *folder]
    config = cli.parse("", ("run", "sampling"), flags, metadata.config_overrides)
    (other,) = images(prepare(config), pipeline)
    assert not np.array_equal(pixels(other), pixels(first))


def test_img2img_generates_a_grid_for_each_initial_image(
    workshop: Workshop, pipeline: Pipeline, tmp_path: Path
) -> None:
    Image.new("RGB", (60, 15), "green").save(tmp_path / "wide.png")
    sources = [str(tmp_path / "wide.png"), str(workshop.folder / "images")]
    paths = images(job(workshop, tmp_path, task="img2img", img=sources, num_cols=2, prompt="a <toy>"), pipeline)
    assert [Path(image_files.read_parameters(path)["img"][0]).name for path in paths[::2]] == [
        "wide.png",
        "0.png",
        "1.png",
        "2.png",
    ]
    assert pixels(paths[0]).shape == (8, 32, 3)
    assert len(list((tmp_path / "out").glob("grid_*.png"))) == 4
    assert not np.array_equal(pixels(paths[0]), pixels(paths[1]))


def test_inpainting_keeps_protected_pixels(workshop: Workshop, pipeline: Pipeline, tmp_path: Path) -> None:
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    original = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(original).save(tmp_path / "original.png")
    options = {"img": [str(tmp_path / "original.png")], "mask": str(tmp_path / "mask.png"), "strength": 1.0}
    (inpainted,) = images(job(workshop, tmp_path, task="inpaint", **options), pipeline)
    assert np.array_equal(pixels(inpainted)[:, :8], original[:, :8])
    assert np.abs(pixels(inpainted)[:, 8:] - original[:, 8:]).mean() > 20


def test_the_preview_file_exists_only_while_a_grid_is_generated(
    workshop: Workshop, pipeline: Pipeline, tmp_path: Path
) -> None:
    previews = []
    for _ in run.run_job(pipeline, job(workshop, tmp_path, preview_interval=1, sample_step=4)):
        preview = tmp_path / "out" / run.PREVIEW
        previews.append(pixels(preview) if preview.exists() else None)
    assert [image is not None for image in previews] == [False, True, True, True, True, False]
    assert not np.array_equal(previews[1], previews[3])


def test_metadata_of_other_weights_warns(
    workshop: Workshop, pipeline: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    next(run.run_job(pipeline, job(workshop, tmp_path, base_model="0" * 16)))
    assert "the generation parameters are of other weights than these" in caplog.text


def test_embeddings_trained_otherwise_warn(
    workshop: Workshop, pipeline: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = dataclasses.replace(toy(token="<other>"), pooling="argmax", metadata={"base_model": "0" * 16})
    embedding_io.save(other, tmp_path / "o.ckpt")
    other_job = job(workshop, tmp_path, textual_inversion_weight=[str(tmp_path / "o.ckpt")], prompt="a cat")
    assert "no prompt uses <other>" in caplog.text
    assert "<other> was trained with --pooling argmax, but end_of_text is used; give --pooling argmax" in caplog.text
    next(run.run_job(pipeline, other_job))
    assert "<other> was trained on other weights than these" in caplog.text


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"prompt": " "}, "--prompt is empty; give a prompt"),
        ({"prompt": "@empty.txt"}, "is an empty file; write a prompt a line"),
        ({"prompt": "@toy.ckpt"}, "is not a text file of prompts"),
        ({"sampler": "dimm"}, "unknown sampler 'dimm'; known are euler"),
        ({"schedule": "trailing", "sample_step": 1001}, "--schedule trailing has at most 1000 steps of this model"),
        ({"init_latent_path": "@nowhere.npy"}, "--init_latent_path .*nowhere.npy is not a file"),
        ({"init_latent_path": "@toy.ckpt"}, "is not a .npy of numbers"),
        (
            {"init_latent_path": "@small.npy"},
            r"holds float64 \[1, 4, 4, 8\]; 1 images of 16×16 need floats \[1, 4, 8, 8\]",
        ),
        ({"init_latent_path": "@right.npy", "num_cols": 2}, r"2 images of 16×16 need floats \[2, 4, 8, 8\]"),
        ({"textual_inversion_weight": ["@nowhere.ckpt"]}, "nowhere.ckpt is not a file"),
        ({"textual_inversion_weight": ["@toy.ckpt", "@toy.ckpt"]}, "<toy>"),
        ({"schedule": "karas"}, "unknown schedule 'karas'; known are legacy"),
        ({"guider": "cgf"}, "unknown guider 'cgf'; known are cfg"),
        ({"schedule": "edm", "sigma_min": 20.0}, "sigma_min is 20.0; it must be less than sigma_max"),
        ({"vae_tiling": True, "vae_tile_size": 1001}, "vae_tile_size is 1001; it must be a multiple of 8"),
        ({"task": "img2img"}, "--img is empty"),
        ({"img": ["@small.png"]}, "--img is for --task img2img or inpaint"),
        ({"task": "img2img", "img": ["@small.png"], "mask": "@small.png"}, "--mask is for --task inpaint"),
        ({"task": "inpaint", "img": ["@small.png"]}, "--task inpaint needs --mask"),
        (
            {"task": "img2img", "img": ["@small.png"], "strength": 0.3},
            "--strength 0.3 of 3 steps is none; it must be at least 0.33",
        ),
        ({"add_pipeline": True, "pipeline_config": "@nowhere.yaml"}, "nowhere.yaml is not a file"),
        ({"add_pipeline": True, "pipeline_config": "@base.yaml"}, "is a base model; give a refiner"),
        (
            {"add_pipeline": True, "pipeline_config": "@refiner.yaml"},
            "leaves the refiner none; it must be at least 0.33",
        ),
        (
            {"add_pipeline": True, "pipeline_config": "@refiner.yaml", "stage2strength": 0.5, "pipeline_weight": "@no"},
            "--pipeline_weight .*no does not exist; it names the refiner's weights",
        ),
        (
            {"add_pipeline": True, "pipeline_config": "configs/sampling/sd_xl_refiner.yaml"},
            "SD-XL-refiner-1.0 has other latents or noise levels than smallest",
        ),
    ],
)
def test_mistakes_are_found_before_the_weights_are_read(
    workshop: Workshop, tmp_path: Path, sampling: dict[str, Any], message: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    np.save(tmp_path / "small.npy", np.zeros((1, 4, 4, 8)))
    np.save(tmp_path / "right.npy", np.zeros((1, 4, 8, 8)))
    Image.new("RGB", (16, 16)).save(tmp_path / "small.png")
    shutil.copy(workshop.yaml, tmp_path / "base.yaml")
    shutil.copy(workshop.folder / "refiner.yaml", tmp_path / "refiner.yaml")

    with pytest.raises(UserError, match=message):
        job(workshop, tmp_path, **placed(sampling, tmp_path))
    assert not (tmp_path / "out").exists()


def test_an_embedding_of_unknown_pooling_is_said_once(
    workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embedding_io.save(dataclasses.replace(toy(token="<other>"), pooling="unknown"), tmp_path / "o.safetensors")
    job(workshop, tmp_path, textual_inversion_weight=[str(tmp_path / "o.safetensors")], prompt="a <other>")
    assert caplog.text.count("the file of <other> does not say with which --pooling it was trained") == 1
    assert "trained with --pooling unknown" not in caplog.text


def test_embeddings_trained_with_a_lora_warn_without_it(
    workshop: Workshop, pipeline: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lora = LoraRecord("detail", 0.5, "0123456789ab")
    trained = dataclasses.replace(toy(token="<other>"), metadata={"loras": lora_files.as_json([lora])})
    embedding_io.save(trained, tmp_path / "o.safetensors")
    other_job = job(workshop, tmp_path, textual_inversion_weight=[str(tmp_path / "o.safetensors")], prompt="a <other>")
    next(run.run_job(pipeline, other_job))
    message = "<other> was trained with the LoRA detail:0.5 (0123456789ab), which --lora_weight does not name"
    assert message in caplog.text


def test_a_missing_lora_is_named_before_the_weights_are_read(workshop: Workshop, tmp_path: Path) -> None:
    config = workshop.config(run={"lora_weight": [str(tmp_path / "detail.safetensors:0.8")], "weight": "nowhere"})
    with pytest.raises(UserError, match=r"--lora_weight .*detail\.safetensors does not exist"):
        prepare(config)


def test_too_many_images_are_refused_before_anything_is_allocated(workshop: Workshop, tmp_path: Path) -> None:
    config = workshop.config(sampling={"num_cols": 1000, "num_rows": 1000, "save_path": str(tmp_path)})
    with pytest.raises(UserError, match="--num_rows × --num_cols are 1000000 images of a prompt; it must be at most"):
        prepare(config)
