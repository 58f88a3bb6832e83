"""Weights that are converted once into the cache folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from gm.checkpoints import containers, converted_cache, loading
from gm.checkpoints.converted_cache import converted
from tests.checkpoints.diffusers_folders import save_diffusers_folder
from tests.reference.case import Case


@pytest.fixture
def folder(smallest: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GM_GRAPHS", str(tmp_path / "graphs"))
    return save_diffusers_folder(smallest, tmp_path / "model")


def test_a_folder_is_converted_once(folder: Path, smallest: Case, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gm")
    target = converted(folder, smallest.config)
    assert target.parent == folder.parent / "graphs" / "weights"
    assert caplog.messages[-1] == f"converting {folder} into {target}, once"
    tensors = containers.read_weights(target).tensors
    for name, array in smallest.weights.items():
        if not name.endswith("logit_scale"):  # a folder has none
            assert tensors[name].read().tobytes() == array.tobytes(), name
    modified = target.stat().st_ino
    assert converted(folder, smallest.config) == target
    assert target.stat().st_ino == modified
    assert caplog.messages[-1] == f"{folder}: the converted weights are in {target}"


def test_changed_files_and_another_model_are_converted_again(
    folder: Path, smallest: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources: list[Path] = []
    monkeypatch.setattr(loading, "convert", lambda source, target, config, dtype: sources.append(target))
    first = converted(folder, smallest.config)
    path = next((folder / "unet").glob("*.safetensors"))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    second = converted(folder, smallest.config)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    third = converted(folder, smallest.config)
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_text("large")
    assert converted(folder, smallest.config) == third
    assert len({first, second, third}) == 3
    assert sources == [first, second, third, third]


def test_half_precision_stays_half(smallest: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GM_GRAPHS", str(tmp_path / "graphs"))
    folder = save_diffusers_folder(smallest, tmp_path / "half", half=True)
    tensors = containers.read_weights(converted(folder, smallest.config)).tensors
    assert {tensor.dtype for tensor in tensors.values()} == {"float16"}


def test_other_sources_are_read_as_they_are(
    folder: Path, smallest: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gm")
    assert converted(smallest.path, smallest.config) == smallest.path  # a safetensors file
    assert converted(folder, smallest.config, ["vae"]) == folder  # of which it may lack the VAE
    assert caplog.messages == []
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert converted(folder, smallest.config) == folder
    assert "is read as it is: its converted weights need" in caplog.messages[0]
    monkeypatch.setenv("GM_GRAPHS", "")
    assert converted(folder, smallest.config) == folder


def test_the_folder_is_beside_the_compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GM_GRAPHS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert converted_cache.cache_folder() == Path("/c/sdxl-textual-inversion/weights")


def test_a_pytorch_file_is_converted(smallest: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("GM_GRAPHS", str(tmp_path / "graphs"))
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in smallest.weights.items()}
    torch.save({"state_dict": tensors}, tmp_path / "model.ckpt")
    target = converted(tmp_path / "model.ckpt", smallest.config)
    assert target.parent == tmp_path / "graphs" / "weights"
    assert set(containers.read_weights(target).tensors) == set(smallest.weights)
