"""gm/checkpoints/config_choice.py: the shipped config of a model, chosen by its weights alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gm import config as configuration
from gm.checkpoints import config_choice, containers, detect
from gm.config import Config, cli, paths
from gm.config.model import ModelConfig
from gm.config.parser import DEFAULT_CONFIG
from gm.errors import UserError
from tests.checkpoints.files import lazy
from tests.checkpoints.test_ldm_layout import LAYOUTS, mindone
from tests.reference.case import Case

Weights = dict[str, np.ndarray]
EMPTY = np.zeros(0, np.float32)
LAST_NORM = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


def written(tmp_path: Path, weights: Weights, metadata: dict[str, str] | None = None, name: str = "a") -> Path:
    path = tmp_path / f"{name}.safetensors"
    containers.write(path, lazy({key: np.asarray(array) for key, array in weights.items()}), metadata)
    return path


def chosen(weight: Path) -> ModelConfig:
    path, sections = config_choice.config_for(weight)
    return configuration.load(path, sections).model


def described(weights: Weights) -> str:
    return detect.detect_family({name: np.shape(array) for name, array in weights.items()})


def test_the_family_is_found_in_every_layout(sd_case: Case) -> None:
    family = sd_case.config.family
    for name, layout in LAYOUTS.items():
        assert described(layout(sd_case.weights, sd_case.config)) == family, name
    text = [name for name in sd_case.weights if name.startswith("cond_stage_model.")]
    assert described({name: array for name, array in sd_case.weights.items() if name not in text}) == ""


def test_the_family_of_sdxl_is_found(any_case: Case) -> None:
    assert described(any_case.weights) == any_case.config.kind
    unet = {name: array for name, array in any_case.weights.items() if not name.startswith("model.diffusion_model.")}
    assert described(unet) == any_case.config.kind


@pytest.mark.parametrize(("width", "kind"), [(768, "sd1"), (1024, "sd2"), (1280, "refiner"), (2048, "base"), (7, "")])
def test_a_unet_alone_tells_by_the_width_of_the_context(width: int, kind: str) -> None:
    assert described({"input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": np.zeros((3, width))}) == kind


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("like-sd1", "sd_v1.5_textual_inversion.yaml"),
        ("like-sd2", "sd_v2.1_base_textual_inversion.yaml"),
        ("reversed", "sd_xl_base_finetune_textual_inversion.yaml"),
        ("refiner", "sd_xl_refiner.yaml"),
    ],
)
def test_weights_alone_choose_the_config_of_their_family(
    cases: Callable[[str], Case], tmp_path: Path, name: str, config: str
) -> None:
    weights = cases(name).weights | ({LAST_NORM: cases(name).weights[LAST_NORM] / 9} if name == "like-sd2" else {})
    path, sections = config_choice.config_for(written(tmp_path, weights))
    assert (Path(path).name, sections) == (config, {})
    if name.startswith("like-sd"):
        containers.write(tmp_path / "b.ckpt", lazy(mindone(weights)))
        assert Path(config_choice.config_for(tmp_path / "b.ckpt")[0]).name == config


def test_sizes_choose_among_the_configs_of_a_family() -> None:
    path, _ = config_choice.config_for("checkpoints/tiny_sd_xl_base.safetensors")
    assert path == "configs/training/tiny_textual_inversion.yaml"


def test_the_default_config_is_taken_for_what_is_not_there_or_not_a_model(tmp_path: Path) -> None:
    default = (DEFAULT_CONFIG, {})
    assert config_choice.config_for(tmp_path / "none.safetensors") == default
    assert config_choice.config_for(tmp_path) == default
    assert config_choice.config_for(written(tmp_path, {"x": np.zeros(3)})) == default
    (tmp_path / "b.ckpt").write_bytes(b"<!doctype html>")
    with pytest.raises(UserError, match="seems to be a web page"):
        config_choice.config_for(tmp_path / "b.ckpt")


@pytest.mark.parametrize(
    ("tensors", "metadata", "expected"),
    [
        ({}, {}, ("epsilon", False)),
        ({"v_pred": EMPTY}, {}, ("v_prediction", False)),
        ({"v_pred": EMPTY, "ztsnr": EMPTY}, {}, ("v_prediction", True)),
        ({}, {"modelspec.prediction_type": "v"}, ("v_prediction", False)),
        ({}, {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, ("v_prediction", True)),
        ({}, {"modelspec.prediction_type": "sample"}, ("epsilon", False)),  # which is refused on load
    ],
)
@pytest.mark.parametrize("name", ["reversed", "like-sd1"])
def test_what_the_file_says_it_predicts_is_taken(
    cases: Callable[[str], Case],
    tmp_path: Path,
    name: str,
    tensors: Weights,
    metadata: dict[str, str],
    expected: tuple[str, bool],
) -> None:
    model = chosen(written(tmp_path, cases(name).weights | tensors, metadata))
    assert (model.schedule.prediction, model.schedule.rescale_betas_zero_snr) == expected


@pytest.mark.parametrize(
    ("metadata", "std", "expected"),
    [
        ({}, 0.12, "sd_v2.1_768_v"),
        ({}, 0.05, "sd_v2.1_base"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, 0.05, "sd_v2.1_768_v"),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, 0.12, "sd_v2.1_base"),
        ({"modelspec.prediction_type": "epsilon"}, 0.12, "sd_v2.1_base"),
    ],
)
def test_stable_diffusion_2_says_what_it_predicts_or_its_weights_do(
    cases: Callable[[str], Case],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    metadata: dict[str, str],
    std: float,
    expected: str,
) -> None:
    caplog.set_level(logging.INFO)
    weights = cases("like-sd2").weights
    norm = np.resize(np.float32([std, -std]), weights[LAST_NORM].shape)
    path = written(tmp_path, weights | {LAST_NORM: norm}, metadata)
    name, sections = config_choice.config_for(path)
    assert Path(name).name.startswith(expected)
    assert sections == {}
    kind = "v_prediction" if "_v" in expected[6:] else "epsilon"
    guessed = f", which does not say what it predicts; by its weights (ComfyUI's rule) {kind}" if not metadata else ""
    assert caplog.messages == [f"{path} is Stable Diffusion 2{guessed}: --config {name}"]


def test_a_config_file_beside_the_weights_tells_v_prediction(cases: Callable[[str], Case], tmp_path: Path) -> None:
    """AUTOMATIC1111's YAML file, and the scheduler of a diffusers folder."""
    path = written(tmp_path, cases("like-sd2").weights)
    path.with_suffix(".yaml").write_text("model: {params: {parameterization: v}}")
    assert chosen(path).schedule.prediction == "v_prediction"
    for network, fields in {
        "unet": {"cross_attention_dim": 1024},
        "text_encoder": {},
        "scheduler": {"prediction_type": "v_prediction"},
    }.items():
        (tmp_path / "model" / network).mkdir(parents=True)
        name = "scheduler_config.json" if network == "scheduler" else "config.json"
        (tmp_path / "model" / network / name).write_text(json.dumps(fields))
    containers.write(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors", lazy({"x": np.zeros(1)}))
    model = chosen(tmp_path / "model")
    assert (model.family, model.resolution, model.schedule.prediction) == ("sd2", 768, "v_prediction")


def test_every_shipped_config_is_there_and_of_its_kind() -> None:
    for kind, names in detect.SHIPPED_CONFIGS.items():
        for name in names:
            assert Path(paths.find_shipped(name)).is_file(), name
            assert detect.model_kind(configuration.load(name).model) == kind


def parse(*arguments: str) -> Config:
    return cli.parse("", ("run", "training"), list(map(str, arguments)), config_for=config_choice.config_for)


def test_the_command_line_takes_the_config_of_the_weights_unless_one_is_given(
    cases: Callable[[str], Case], tmp_path: Path
) -> None:
    path = written(tmp_path, cases("like-sd1").weights | {"v_pred": EMPTY})
    config = parse("--weight", path, "--total_step", "7")
    assert (config.model.family, config.model.schedule.prediction) == ("sd1", "v_prediction")
    assert (config.run.weight, config.training.total_step) == (str(path), 7)
    assert parse("--weight", path, "--config", DEFAULT_CONFIG).model == ModelConfig()
    assert parse().model == ModelConfig()
    assert parse("--weight", tmp_path / "none.ckpt").model == ModelConfig()


def test_a_config_of_the_wrong_family_names_those_of_full_size() -> None:
    with pytest.raises(UserError, match=r"give --config configs/training/sd_v1\.5_textual_inversion\.yaml$"):
        detect.check_family("sd1", ModelConfig(), "a.safetensors")
