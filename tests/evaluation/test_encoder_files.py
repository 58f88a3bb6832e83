"""Finding and reading the files of image encoders: folders, the Hub's cache, and what is wrong with them."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from gm.checkpoints import containers, torch_format
from gm.checkpoints.lazy_tensor import LazyTensor, in_memory
from gm.errors import UserError
from gm.evaluation import encoders
from gm.runtime.backend import Backend
from tests.evaluation import encoder_folders
from tests.evaluation.encoder_folders import CLIP_B32, DINO_S16, DINOV2_B14

PYNATIVE = Backend("CPU", graph=False, dtype=ms.float32)
NAME = "facebook/dino-vits16"


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folders.write(tmp_path_factory.mktemp("dino"), DINO_S16)


@pytest.fixture
def folder(dino: Path, tmp_path: Path) -> Path:
    """Return a copy of DINO's folder, to be changed."""
    return Path(shutil.copytree(dino, tmp_path / "copy"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not installed
    return tmp_path / "hub"


def features(name: str) -> np.ndarray:
    image = Image.fromarray(np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3))
    return encoders.load_dino("--dino", name).image_features([image], PYNATIVE)


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_weights(folder: Path, change: Callable[[dict[str, LazyTensor]], dict[str, LazyTensor]]) -> None:
    path = folder / "model.safetensors"
    weights = {key: in_memory(np.array(tensor.read())) for key, tensor in containers.read(path).tensors.items()}
    containers.write(path, change(weights), {"format": "pt"})


def test_name_of_the_hub_is_read_from_the_cache(dino: Path, cache: Path) -> None:
    repository = cache / "models--facebook--dino-vits16"
    shutil.copytree(dino, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert np.array_equal(features(NAME), features(str(dino)))


@pytest.mark.parametrize("partial", [False, True])
def test_without_weights_the_message_says_how_to_fetch_them(dino: Path, cache: Path, partial: bool) -> None:
    if partial:
        snapshot = cache / "models--facebook--dino-vits16" / "snapshots" / "main"
        snapshot.mkdir(parents=True)
        shutil.copy(dino / "config.json", snapshot)
    with pytest.raises(UserError) as caught:
        features(NAME)
    message = str(caught.value)
    assert message.startswith(f"--dino {NAME} is neither a folder nor in the Hugging Face cache {cache}; pip install")
    assert message.endswith(f"hf download {NAME} --local-dir <folder>, and give --dino <folder>")


class _Hub:
    """The two functions of the Hub's client that are used."""

    def __init__(self, listed: list[str], folder: Path) -> None:
        self.listed, self.folder = listed, folder
        self.asked: list[str] = []

    def HfApi(self) -> _Hub:
        return self

    def list_repo_files(self, name: str) -> list[str]:
        return self.listed

    def snapshot_download(self, name: str, allow_patterns: list[str]) -> str:
        self.asked = allow_patterns
        return str(self.folder)


def test_only_one_format_of_the_weights_is_fetched(dino: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ["README.md", "config.json", "preprocessor_config.json", "pytorch_model.bin", "model.safetensors"]
    hub = _Hub([*listed, "flax_model.msgpack"], dino)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    features(NAME)
    assert hub.asked == ["config.json", "preprocessor_config.json", "model.safetensors"]
    hub.listed.remove("model.safetensors")
    features(NAME)
    assert hub.asked[-1] == "pytorch_model.bin"


def test_pytorch_file_and_a_file_by_its_path(folder: Path) -> None:
    expected = features(str(folder))
    assert np.array_equal(features(str(folder / "model.safetensors")), expected)
    tensors = containers.read(folder / "model.safetensors").tensors
    torch_format.write(folder / "pytorch_model.bin", {key: np.array(tensor.read()) for key, tensor in tensors.items()})
    (folder / "model.safetensors").unlink()
    assert np.array_equal(features(str(folder)), expected)


def test_encoder_behind_a_prefix_and_its_head_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = features(str(folder))
    head = {"classifier.weight": in_memory(np.zeros((3, 32), np.float32))}
    change_weights(folder, lambda tensors: {f"vit.{key}": tensor for key, tensor in tensors.items()} | head)
    caplog.set_level(logging.INFO, "gm")
    assert np.array_equal(features(str(folder)), expected)
    assert "model.safetensors: not used: classifier.weight" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "dinov2_with_registers"}, "must be 'vit' \\(DINO\\) or 'dinov2' \\(DINOv2\\)"),
        ({"model_type": "clip"}, "model_type is 'clip'; it must be"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', and only 'gelu' is computed"),
        ({"num_attention_heads": 5}, "hidden_size 32 is no multiple of num_attention_heads 5"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'; it must be a whole number"),
        ({"num_hidden_layers": 3}, "does not fit its config.json, a network of 54 tensors: 16 missing"),
        ({"hidden_size": 16, "intermediate_size": 64}, "of another shape"),
        ({"patch_size": 15}, "images of 48 pixels are no whole number of patches of 15"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small'"),
    ],
)
def test_other_architectures_are_refused(folder: Path, values: dict[str, Any], message: str) -> None:
    change_config(folder, **values)
    with pytest.raises(UserError, match=message):
        features(str(folder))


def test_swiglu_of_the_giant_dinov2_is_refused(tmp_path: Path) -> None:
    encoder_folders.write(tmp_path, DINOV2_B14)
    change_config(tmp_path, use_swiglu_ffn=True)
    with pytest.raises(UserError, match="use_swiglu_ffn is True, and only False is computed"):
        features(str(tmp_path))


def test_clip_with_another_activation_is_refused(tmp_path: Path) -> None:
    encoder_folders.write(tmp_path, CLIP_B32)
    text = encoder_folders.config(CLIP_B32)["text_config"]
    change_config(tmp_path, text_config={**text, "hidden_act": "gelu"})
    with pytest.raises(UserError, match=r"text_config\.hidden_act is 'gelu', and only 'quick_gelu' is computed"):
        encoders.load_clip("--clip", str(tmp_path))


def test_damaged_and_missing_files_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--dino .*cop does not exist.*did you mean 'copy'"):
        features(str(folder.with_name("cop")))
    spoiled = {"layernorm.weight": in_memory(np.full(32, np.nan, np.float32))}
    change_weights(folder, lambda tensors: tensors | spoiled)
    with pytest.raises(UserError, match=r"layernorm\.weight holds 32 NaN of 32 values"):
        features(str(folder))
    (folder / "config.json").write_text("[1]")
    with pytest.raises(UserError, match=r"config\.json holds no JSON object"):
        features(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        features(str(folder))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"has no model\.safetensors or pytorch_model\.bin but model\.safetensors\.index"
    ):
        features(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json; give the folder as it is on the Hub"):
        features(str(folder))


def test_layer_that_is_left_over_is_refused(folder: Path) -> None:
    extra = {"encoder.layer.2.output.dense.bias": in_memory(np.zeros(32, np.float32))}
    change_weights(folder, lambda tensors: tensors | extra)
    with pytest.raises(UserError, match=r"1 unexpected \(encoder\.layer\.2\.output\.dense\.bias\)"):
        features(str(folder))
