"""LoRAs in sampling, training, conversion and the API."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gm import api
from gm.checkpoints import containers
from gm.config import cli
from gm.errors import UserError
from gm.hub import export
from gm.lora import files, merging
from gm.sampling import metadata, request, run
from tests.lora.conftest import UNET_LAYER, WriteLora
from tests.project import Call, Workshop

CONVERT = Path(__file__).resolve().parents[2] / "tools" / "convert_weights" / "convert.py"


def test_the_option_takes_several_files() -> None:
    config = cli.parse("", ("run",), ["--lora_weight", "a.safetensors:0.8", "b.safetensors", "--ms_mode", "1"])
    assert config.run.lora_weight == ["a.safetensors:0.8", "b.safetensors"]


def test_images_are_those_of_the_merged_weights_and_repeat(
    workshop: Workshop, write_lora: WriteLora, tmp_path: Path
) -> None:
    path = write_lora(modules=(UNET_LAYER,))
    options = {"save_path": str(tmp_path / "out"), "prompt": "a cat"}
    config = workshop.config(run={"lora_weight": [f"{path}:0.8"]}, sampling=options)
    job = request.prepare(config)
    toolkit = api.load(config)
    image, _ = (event for event in run.run_job(toolkit.pipeline, job) if isinstance(event, Path))
    plain = api.generate(api.load(workshop.config(sampling=options)), "a cat", seed=config.sampling.seed)[0]
    pixels = np.asarray(Image.open(image))
    assert not np.array_equal(pixels, plain)
    again = cli.parse("", ("run", "sampling"), ["--parameters_from", str(image)], metadata.config_overrides)
    assert again.run.lora_weight == [f"{path}:0.8"]
    assert np.array_equal(api.generate(api.load(again), "a cat", seed=config.sampling.seed)[0], pixels)


def test_training_records_the_loras(workshop: Workshop, write_lora: WriteLora) -> None:
    path = write_lora()
    toolkit = api.load(workshop.yaml, run={"lora_weight": [f"{path}:0.5", f"{write_lora('off.safetensors')}:0"]})
    embedding = api.train(toolkit, workshop.folder / "images", "<toy>", training={"total_step": 1})
    (lora,) = embedding.metadata["loras"]
    assert lora == {"name": "detail", "strength": 0.5, "hash": files.short_hash(path)}
    plain = api.train(api.load(workshop.yaml), workshop.folder / "images", "<toy>", training={"total_step": 1})
    assert "loras" not in plain.metadata
    assert embedding.metadata["base_model"] == plain.metadata["base_model"]
    assert not np.array_equal(embedding.vectors["clip_g"], plain.vectors["clip_g"])
    public = export.remove_private_paths(embedding.metadata)
    assert public["loras"] == [lora]
    assert "lora_weight" not in public["recipe"]["run"]


def test_the_convert_command_merges(workshop: Workshop, write_lora: WriteLora, tmp_path: Path, call: Call) -> None:
    path, target = write_lora(), tmp_path / "merged.ckpt"
    arguments = ["--config", workshop.yaml, "--source", workshop.folder / "weights.ckpt", "--target", target]
    code, out, error = call(CONVERT, *arguments, "--dtype", "float32", "--lora_weight", f"{path}:0.5")
    assert (code, error) == (0, "")
    assert f"merging {path}:0.5 into 2 layers" in out
    assert containers.read(target).metadata[merging.MERGED].startswith('[{"name": "detail", "strength": 0.5')
    code, _, error = call(CONVERT, *arguments, "--overwrite", "--lora_weight", tmp_path / "none.safetensors")
    assert code == 2
    assert "none.safetensors does not exist" in error


def test_mindones_way_to_give_a_lora_is_named(workshop: Workshop) -> None:
    weight = f"{workshop.folder}/weights.ckpt"
    with pytest.raises(UserError, match=r"names several files; give --lora_weight my_lora\.ckpt"):
        api.load(workshop.config(run={"weight": f"{weight},my_lora.ckpt"}))


@pytest.mark.parametrize("flag", ["--network_weights", "--base_weights", "--lora_path"])
def test_flags_of_other_programs_are_answered(flag: str) -> None:
    with pytest.raises(UserError, match=rf"unknown argument {flag}; LoRA files .*--lora_weight FILE:strength"):
        cli.parse("", ("run",), [flag, "a.safetensors"])
