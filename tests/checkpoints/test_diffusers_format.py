"""gm/checkpoints/diffusers_format.py, with folders that diffusers and transformers saved of published weights."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from gm.checkpoints import containers, diffusers_format, loading
from gm.errors import UserError
from tests.checkpoints.diffusers_folders import assert_published, save_diffusers_folder
from tests.reference.case import Case
from tests.reference.networks import load as load_reference

pytestmark = pytest.mark.reference

PREFIX = "conditioner.embedders.1.model."
SCALE = "logit_scale"


@pytest.fixture
def folder(smallest: Case, tmp_path: Path) -> Path:
    return save_diffusers_folder(smallest, tmp_path / "model")


def test_a_folder_equals_the_published_file(any_case: Case, tmp_path: Path) -> None:
    assert_published(diffusers_format.read(save_diffusers_folder(any_case, tmp_path), any_case.config), any_case)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_equal_the_single_file(smallest: Case, tmp_path: Path, variant: str | None) -> None:
    save_diffusers_folder(smallest, tmp_path, max_shard_size="50KB", variant=variant)
    shards = list(tmp_path.rglob("*.safetensors"))
    assert len(list(tmp_path.rglob("*.index*.json"))) == 4
    assert len(shards) > 8
    assert_published(diffusers_format.read(tmp_path, smallest.config), smallest)


def test_full_precision_shards_are_preferred(smallest: Case, tmp_path: Path) -> None:
    save_diffusers_folder(smallest, tmp_path, half=True, max_shard_size="20KB", variant="fp16")
    save_diffusers_folder(smallest, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.rglob("*.index*.json"))) == 8
    assert_published(diffusers_format.read(tmp_path, smallest.config), smallest)


def test_the_fp16_variant_is_read_where_it_is_the_only_one(smallest: Case, tmp_path: Path) -> None:
    save_diffusers_folder(smallest, tmp_path, half=True, variant="fp16")
    assert_published(diffusers_format.read(tmp_path, smallest.config), smallest, "float16")
    save_diffusers_folder(smallest, tmp_path)
    assert_published(diffusers_format.read(tmp_path, smallest.config), smallest)


@pytest.mark.parametrize("name", ["reversed", "refiner"])
def test_a_folder_converts_like_the_published_file(cases: Callable[[str], Case], name: str, tmp_path: Path) -> None:
    case = cases(name)
    loading.convert(save_diffusers_folder(case, tmp_path / "model"), tmp_path / "a.ckpt", case.config, "float32")
    loading.convert(case.path, tmp_path / "b.ckpt", case.config, "float32")
    ours, expected = (containers.read(tmp_path / name).tensors for name in ("a.ckpt", "b.ckpt"))
    assert list(ours) == list(expected)
    assert all(np.array_equal(ours[name].read(), expected[name].read()) for name in ours if not name.endswith(SCALE))


def test_diffusers_reads_the_published_file_converted_from_a_folder(any_case: Case, tmp_path: Path) -> None:
    case = any_case
    tensors = diffusers_format.read(save_diffusers_folder(case, tmp_path / "folder"), case.config)
    containers.write(tmp_path / "a.safetensors", tensors, {"format": "pt"})
    again = load_reference(case.config, tmp_path / "a.safetensors", tmp_path)
    for name in ("unet", "vae", "text_encoder_1", "text_encoder_2"):
        if getattr(case.reference, name) is None:
            continue
        expected, state_dict = getattr(case.reference, name).state_dict(), getattr(again, name).state_dict()
        assert set(state_dict) == set(expected)
        assert all(torch.equal(state_dict[key], expected[key]) for key in expected), name


def rewrite(path: Path, change: Callable[[str, np.ndarray], tuple[str, np.ndarray]]) -> None:
    save_file(dict(change(name, array) for name, array in load_file(path).items()), path)


def test_keys_of_older_versions_are_read(smallest: Case, folder: Path) -> None:
    """`text_model.` in encoder 1 and position_ids, as published, and the autoencoder's attention as once named."""
    path = folder / "text_encoder" / "model.safetensors"
    rewrite(path, lambda name, array: (f"text_model.{name.removeprefix('text_model.')}", array))
    save_file(load_file(path) | {"text_model.embeddings.position_ids": np.arange(30)[None]}, path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
        return re.sub("|".join(map(re.escape, old)), lambda match: old[match[0]], name), array

    rewrite(folder / "vae" / "diffusion_pytorch_model.safetensors", rename)
    assert "encoder.mid_block.attentions.0.query.weight" in load_file(
        folder / "vae" / "diffusion_pytorch_model.safetensors"
    )
    assert_published(diffusers_format.read(folder, smallest.config), smallest)


def test_unknown_and_missing_tensors_are_not_hidden(smallest: Case, folder: Path) -> None:
    def rename(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
        return name.replace("layers.0.self_attn.k_proj.bias", "extra.bias").replace("layers.1", "odd.1"), array

    rewrite(folder / "text_encoder_2" / "model.safetensors", rename)
    keys = set(diffusers_format.read(folder, smallest.config))
    block = PREFIX + "transformer.resblocks.0.attn."
    assert block + "in_proj_bias" not in keys
    assert {block + "q_proj.bias", PREFIX + "encoder.extra.bias"} <= {
        name.replace("transformer.resblocks.extra", "encoder.extra") for name in keys
    }


def test_missing_networks_and_files_are_reported(smallest: Case, folder: Path) -> None:
    index = folder / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(folder / "vae" / "other.safetensors")
    with pytest.raises(UserError, match=r"vae has no diffusion_pytorch_model\.safetensors.*safe_serialization"):
        diffusers_format.read(folder, smallest.config)
    for text in ("{", "[" * 10**5, '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        with pytest.raises(UserError, match="is not an index"):
            diffusers_format.read(folder, smallest.config)
    for name, reason in (("a\0b", "no file can have"), ("\ud800", "no file can have"), ("..", "is a folder")):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(UserError, match=reason) as caught:
            diffusers_format.read(folder, smallest.config)
        assert str(caught.value).isprintable()
    index.write_text(json.dumps({"weight_map": {"a": "../vae/part-1.safetensors"}}))
    with pytest.raises(UserError, match=r"part-1.* is not a file"):
        diffusers_format.read(folder, smallest.config)
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(UserError, match=r"has no text_encoder: it is incomplete, or the SDXL refiner"):
        diffusers_format.read(folder, smallest.config)
    shutil.rmtree(folder / "unet")
    with pytest.raises(UserError, match=r"is not a diffusers SDXL folder: it has no unet, text_encoder$"):
        diffusers_format.read(folder, smallest.config)


def test_a_folder_of_the_other_kind_is_identified(smallest: Case, refiner: Case, tmp_path: Path) -> None:
    base, refining = (save_diffusers_folder(case, tmp_path / case.name) for case in (smallest, refiner))
    with pytest.raises(UserError, match=r"the SDXL refiner, which goes to --pipeline_weight") as caught:
        loading.convert(refining, tmp_path / "a.ckpt", smallest.config, "float32")
    assert "--config configs/sampling/sd_xl_refiner.yaml" in str(caught.value)
    with pytest.raises(UserError, match=r"the SDXL base model, which goes to --weight .*; use the SDXL refiner$"):
        loading.convert(base, tmp_path / "a.ckpt", refiner.config, "float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["refiner", "reversed"]
