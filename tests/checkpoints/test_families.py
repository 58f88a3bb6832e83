"""Stable Diffusion 1 and 2 beside SDXL: what is refused by name, networks of other files, metadata, conversion."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gm.checkpoints import containers, loading
from gm.checkpoints.networks import WeightFiles
from gm.config.model import ModelConfig, ScheduleConfig
from gm.diffusion.schedule import training_sigmas
from gm.errors import UserError
from gm.models import stable_diffusion
from tests.checkpoints.files import lazy
from tests.checkpoints.v_prediction import zero_terminal_snr
from tests.project import Call
from tests.reference.case import Case

Weights = dict[str, np.ndarray]
UNET = "model.diffusion_model."
CONVERT = Path(__file__).resolve().parents[2] / "tools" / "convert_weights" / "convert.py"
EMPTY = np.zeros(0, np.float32)
V_PREDICTION = ScheduleConfig(prediction="v_prediction")
ZERO_SNR = dataclasses.replace(V_PREDICTION, rescale_betas_zero_snr=True)


def written(tmp_path: Path, weights: Weights, metadata: dict[str, str] | None = None, name: str = "a") -> Path:
    path = tmp_path / f"{name}.safetensors"
    containers.write(path, lazy(weights), metadata)
    return path


def refusal(path: Path, config: ModelConfig) -> str:
    with pytest.raises(UserError) as caught:
        loading.convert(path, path.with_name("out.ckpt"), config, "float32")
    assert "\n" not in str(caught.value)
    assert not path.with_name("out.ckpt").exists()
    return str(caught.value)


def with_channels(weights: Weights, channels: int) -> Weights:
    first = weights[UNET + "input_blocks.0.0.weight"]
    return weights | {UNET + "input_blocks.0.0.weight": np.zeros((len(first), channels, 3, 3), np.float32)}


@pytest.mark.parametrize(
    ("channels", "model"),
    [(9, "an inpainting model"), (5, "a depth-to-image model"), (7, "an upscaler"), (8, "an instruct-pix2pix model")],
)
def test_models_with_more_input_channels_are_named(sd_case: Case, tmp_path: Path, channels: int, model: str) -> None:
    text = refusal(written(tmp_path, with_channels(sd_case.weights, channels)), sd_case.config)
    number = sd_case.config.family[2:]
    assert (
        f"it seems to be {model}, whose UNet has {channels} input channels instead of 4; use Stable Diffusion {number}."
        in text
    )


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("an unCLIP model, conditioned on an image", [UNET + "label_emb.0.0.weight", "noise_augmentor.data_mean"]),
        ("a GLIGEN model, conditioned on boxes", [UNET + "input_blocks.1.1.transformer_blocks.0.fuser.alpha_attn"]),
        ("a model conditioned on a depth map or a view", ["cc_projection.weight"]),
        ("an LCM that embeds the guidance scale (cond_proj)", [UNET + "time_embed.cond_proj.weight"]),
    ],
)
def test_models_with_more_inputs_are_named(sd_case: Case, tmp_path: Path, model: str, keys: list[str]) -> None:
    extra = {key: np.zeros(3, np.float32) for key in keys}
    text = refusal(written(tmp_path, sd_case.weights | extra), sd_case.config)
    assert f"it seems to be {model}; use Stable Diffusion " in text


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("AltDiffusion, whose text encoder is XLM-RoBERTa; use", ["cond_stage_model.roberta.embeddings.x"]),
        ("latent diffusion of 2021 with BERT; use", ["cond_stage_model.transformer.attn_layers.layers.0.x"]),
        ("an upscaler, whose UNet has 7 input channels; use", ["low_scale_model.betas"]),
        ("Flux or Stable Diffusion 3; use Stable Diffusion 1.4", ["double_blocks.0.img_mod.lin.weight"]),
    ],
)
def test_other_models_are_named(cases: Callable[[str], Case], tmp_path: Path, model: str, keys: list[str]) -> None:
    path = written(tmp_path, {key: np.zeros(3, np.float32) for key in keys})
    assert f"it seems to be {model}" in refusal(path, cases("small-sd1").config)


def test_a_config_of_another_family_is_named(cases: Callable[[str], Case], smallest: Case) -> None:
    names = {"small-sd1": "Stable Diffusion 1", "like-sd2": "Stable Diffusion 2", "reversed": "SDXL"}
    for name, title in names.items():
        for other, wanted in names.items():
            if name == other:
                continue
            with pytest.raises(UserError) as caught:
                loading.load_weights(stable_diffusion.build(cases(other).config), cases(name).path, cases(other).config)
            assert f"is {title}, but the config describes {wanted} ({other}); leave out --config, or " in str(
                caught.value
            )


def test_a_vae_is_shared_by_stable_diffusion_1_and_2_and_a_unet_is_not(
    cases: Callable[[str], Case], smallest: Case, tmp_path: Path
) -> None:
    one, two = cases("like-sd1"), cases("like-sd2")  # whose VAEs have equal sizes
    loading.convert(WeightFiles(one.path, {"vae": two.path}), tmp_path / "a.safetensors", one.config, "float32")
    converted = load_file(tmp_path / "a.safetensors")
    for name, array in one.weights.items():
        expected = two.weights[name] if name.startswith("first_stage_model.") else array
        assert np.array_equal(converted[name], expected)
    for network, other, title in (("unet", two, "Stable Diffusion 2"), ("vae", smallest, "SDXL")):
        with pytest.raises(
            UserError, match=f"--{network} .* is {title}, whose .* is another; give that of a model of Stable"
        ):
            loading.convert(WeightFiles(one.path, {network: other.path}), tmp_path / "b.ckpt", one.config, "float32")


def test_a_vae_that_is_missing_is_asked_for_with_an_example_of_the_family(
    cases: Callable[[str], Case], tmp_path: Path
) -> None:
    case = cases("small-sd1")
    without = {name: array for name, array in case.weights.items() if not name.startswith("first_stage_model.")}
    text = refusal(written(tmp_path, without), case.config)
    assert text.endswith("has no VAE; give one with --vae, such as vae-ft-mse-840000-ema-pruned.safetensors")
    text_encoder = {name: array for name, array in case.weights.items() if not name.startswith("cond_stage_model.")}
    assert "has no text encoders: give it with --unet and --vae" in refusal(
        written(tmp_path, text_encoder), case.config
    )


@pytest.mark.parametrize("family", ["small-sd1", "reversed"])
def test_v_prediction_is_accepted_where_the_config_has_it(
    cases: Callable[[str], Case], tmp_path: Path, family: str
) -> None:
    case = cases(family)
    v = dataclasses.replace(case.config, schedule=V_PREDICTION)
    zero = dataclasses.replace(case.config, schedule=ZERO_SNR)
    target = tmp_path / "out.safetensors"
    path = written(tmp_path, case.weights | {"v_pred": EMPTY})
    loading.convert(path, target, v, "float32")
    assert containers.read(target).metadata == {"modelspec.prediction_type": "v", "format": "pt"}
    assert "prediction_type v_prediction instead of epsilon; if that is right, leave out --config" in refusal(
        path, case.config
    )
    path = written(tmp_path, case.weights | {"v_pred": EMPTY, "ztsnr": EMPTY})
    loading.convert(path, target, zero, "float32")
    assert containers.read(target).metadata["scheduler.rescale_betas_zero_snr"] == "true"
    assert "rescale_betas_zero_snr true instead of false; if that is right, leave out --config" in refusal(path, v)
    tables = {"alphas_cumprod": zero_terminal_snr().astype(np.float32)}
    loading.convert(written(tmp_path, case.weights | tables), target, zero, "float32")
    ordinary = {"alphas_cumprod": (1 / (1 + training_sigmas(V_PREDICTION) ** 2)).astype(np.float32)}
    assert "alphas_cumprod says rescale_betas_zero_snr false instead of true" in refusal(
        written(tmp_path, case.weights | ordinary), zero
    )
    epsilon = written(tmp_path, case.weights, {"modelspec.prediction_type": "epsilon"})
    assert "prediction_type epsilon instead of v_prediction; " in refusal(epsilon, v)


def test_a_converted_file_says_what_the_config_says_and_a_reader_would_guess(
    cases: Callable[[str], Case], tmp_path: Path
) -> None:
    """So that the converted file alone chooses the same config again."""
    for name, schedule, expected in (
        ("small-sd1", ScheduleConfig(), {}),
        ("small-sd1", ZERO_SNR, {"modelspec.prediction_type": "v", "scheduler.rescale_betas_zero_snr": "true"}),
        ("like-sd2", ScheduleConfig(), {"modelspec.prediction_type": "epsilon"}),
        ("like-sd2", V_PREDICTION, {"modelspec.prediction_type": "v"}),
    ):
        config = dataclasses.replace(cases(name).config, schedule=schedule)
        loading.convert(cases(name).path, tmp_path / "out.ckpt", config, "float32")
        assert containers.read(tmp_path / "out.ckpt").metadata == expected


def test_a_yaml_file_of_latent_diffusion_is_read(cases: Callable[[str], Case], tmp_path: Path) -> None:
    case = cases("small-sd1")
    path = written(tmp_path, case.weights)
    path.with_suffix(".yaml").write_text(
        json.dumps({"model": {"params": {"parameterization": "v", "scale_factor": 0.2}}})
    )
    text = refusal(path, case.config)
    assert "a.yaml says prediction_type v_prediction instead of epsilon, scaling_factor 0.2 instead of 0.18215" in text


def test_an_architecture_in_the_metadata_that_fits_is_not_mentioned(
    cases: Callable[[str], Case], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name, architecture in (("small-sd1", "stable-diffusion-v1"), ("like-sd2", "stable-diffusion-v2-512")):
        path = written(tmp_path, cases(name).weights, {"modelspec.architecture": architecture})
        loading.convert(path, tmp_path / "out.ckpt", cases(name).config, "float32")
    assert caplog.messages == []


def test_the_converter_needs_no_config(cases: Callable[[str], Case], tmp_path: Path, call: Call) -> None:
    """Of the small model the sizes do not fit, which shows whose config was taken."""
    code, out, error = call(CONVERT, "--source", cases("small-sd1").path, "--target", tmp_path / "a.ckpt")
    assert code == 2
    assert "is Stable Diffusion 1: --config configs/training/sd_v1.5_textual_inversion.yaml" in out
    assert "does not fit the model of 1130 tensors" in error
