"""gm/checkpoints/statements.py and single_file_statements.py: what a single file says of its model."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from gm.checkpoints import accepted_values, containers, key_mapping, loading, reader, statements
from gm.checkpoints.single_file_statements import MARKER_TENSORS
from gm.checkpoints.statements import Statement
from gm.config.model import ModelConfig, ScheduleConfig
from gm.diffusion.schedule import training_sigmas
from gm.errors import UserError
from gm.models import stable_diffusion
from tests.checkpoints.files import lazy
from tests.checkpoints.v_prediction import ALPHAS, EMPTY, LEAVE_OUT, zero_terminal_snr
from tests.reference.case import Case

EPSILON = "instead of epsilon"

Open = Callable[..., None]


@pytest.fixture
def open_file(smallest: Case, tmp_path: Path) -> Open:
    """Return a function that reads the smallest model with tensors, metadata or a YAML file added."""
    shapes = key_mapping.parameter_shapes(smallest.model)

    def open_(
        tensors: dict[str, np.ndarray] | None = None, metadata: dict[str, str] | None = None, yaml: str = ""
    ) -> None:
        path = tmp_path / "model.safetensors"
        containers.write(path, lazy(smallest.weights | (tensors or {})), metadata)
        if yaml:
            path.with_suffix(".yaml").write_text(yaml)
        loading.check_tensors(shapes, reader.read(path, shapes, smallest.config).tensors, path, "base")

    return open_


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"modelspec.prediction_type": "v"}, f"modelspec.prediction_type says prediction_type v_prediction {EPSILON}"),
        ({"modelspec.prediction_type": "V_prediction"}, "prediction_type v_prediction"),
        ({"modelspec.predict_key": "v"}, f"modelspec.predict_key says prediction_type v_prediction {EPSILON}"),
        ({"modelspec.prediction_type": "sample"}, f"prediction_type sample {EPSILON}"),
        (
            {"modelspec.prediction_type": "flow"},
            f"prediction_type flow {EPSILON}; such models are not supported; use one",
        ),
        ({"prediction_type": "vpred"}, "prediction_type v_prediction"),
        ({"ss_v_parameterization": "True"}, "ss_v_parameterization says prediction_type v_prediction"),
        (
            {"ss_zero_terminal_snr": "True"},
            f"rescale_betas_zero_snr true instead of false; {LEAVE_OUT}rescale_betas_zero_snr true",
        ),
        ({"v_pred": "", "ztsnr": ""}, "prediction_type v_prediction"),
        ({"vae.scaling_factor": "0.18215"}, "scaling_factor 0.18215 instead of 0.3; .*model.vae.scale_factor 0.18215"),
        ({"scheduler.beta_end": "0.02"}, r"beta_end 0.02 instead of 0.012; .*model.schedule.beta_end 0.02"),
    ],
)
def test_metadata_that_contradicts_the_model_is_refused(
    open_file: Open, metadata: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_file(metadata=metadata)
    assert "model.safetensors is another kind of model than the config describes: the metadata" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"v_pred": EMPTY}, f"the tensor v_pred says prediction_type v_prediction {EPSILON}"),
        ({"ztsnr": EMPTY}, "the tensor ztsnr says rescale_betas_zero_snr true instead of false"),
        (
            {"edm_mean": np.ones(4), "edm_std": np.ones(4)},
            rf"edm_mean says prediction_type EDM \(as Playground .*{EPSILON}",
        ),
        (
            {"edm_vpred.sigma_max": np.array(120.0)},
            r"sigma_max says prediction_type v_prediction with EDM.* \(as CosXL",
        ),
        ({"edm_vpred.sigma_min": np.array(0.002)}, r"sigma_min says prediction_type v_prediction with EDM"),
        ({"scale_factor": np.array(0.18215, np.float32)}, "scale_factor says scaling_factor 0.18215 instead of 0.3"),
        ({"latents_mean": np.ones(4)}, "latents_mean"),
        ({"alphas_cumprod": zero_terminal_snr()}, "the tensor alphas_cumprod says rescale_betas_zero_snr true"),
        ({"betas": np.linspace(1e-4, 0.02, 1000)}, "the tensor betas says .*schedule"),
        ({"denoiser.sigmas": training_sigmas(ScheduleConfig(beta_end=0.014))}, "the tensor denoiser.sigmas says"),
    ],
)
def test_tensors_that_contradict_the_model_are_refused_by_name(
    open_file: Open, tensors: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_file(tensors)


def test_v_prediction_names_its_cause_and_the_way_out_once(open_file: Open) -> None:
    with pytest.raises(UserError) as caught:
        open_file({"v_pred": EMPTY, "ztsnr": EMPTY}, {"modelspec.predict_key": "v"})
    text = str(caught.value)
    assert text.count(EPSILON) == 1
    assert text.endswith(f"{LEAVE_OUT}prediction v_prediction")


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"modelspec.prediction_type": "epsilon", "modelspec.predict_key": "epsilon"},
        {"modelspec.prediction_type": "None", "ss_v_parameterization": "False", "ss_zero_terminal_snr": "False"},
        {"vae.scaling_factor": "0.3", "scheduler.rescale_betas_zero_snr": "false"},
    ],
)
def test_statements_that_fit_are_accepted(open_file: Open, metadata: dict[str, str]) -> None:
    open_file(metadata=metadata)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("descending", [False, True])
def test_tables_of_the_models_own_schedule_are_accepted(open_file: Open, dtype: type, descending: bool) -> None:
    order = slice(None, None, -1 if descending else 1)
    sigmas = training_sigmas(ScheduleConfig())[order]
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    open_file({"alphas_cumprod": ALPHAS.astype(dtype), "denoiser.sigmas": sigmas.astype(dtype)})
    open_file({"betas": betas.astype(dtype), "scale_factor": np.array(0.3, dtype)})


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("model: {params: {parameterization: v}}", f"model.yaml says prediction_type v_prediction {EPSILON}"),
        (
            "model: {params: {denoiser_config: {params: {scaling_config: {target: a.b.VScaling}}}}}",
            f"model.yaml says prediction_type v_prediction {EPSILON}",
        ),
        ("model: {params: {scale_factor: 0.18215}}", "model.yaml says scaling_factor 0.18215 instead of 0.3"),
    ],
)
def test_the_yaml_file_of_the_same_name_is_read(open_file: Open, yaml: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_file(yaml=yaml)


@pytest.mark.parametrize(
    "yaml",
    [
        "model: {params: {parameterization: eps, scale_factor: 0.3, denoiser_config: {params: {scaling_config: "
        "{target: sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling}}}}}",
        "model: {version: mine}\ntrain: {}",  # a config of this toolkit
        "- a\n- b",
        "a: [",
        "model: {params: [1]}",
    ],
)
def test_a_yaml_file_that_fits_or_is_another_kind_of_file_changes_nothing(open_file: Open, yaml: str) -> None:
    open_file(yaml=yaml)


def test_what_nothing_uses_is_logged_in_one_line(open_file: Open, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    open_file(
        metadata={
            "modelspec.timestep_range": "0,199",
            "modelspec.encoder_layer": "4",
            "modelspec.architecture": "stable-diffusion-v1",
            "modelspec.title": "mine",
        }
    )
    (message,) = caplog.messages
    assert message.endswith(
        "not used: the metadata says timestep_range 0,199, encoder_layer 4, architecture stable-diffusion-v1"
    )


def test_loading_refuses_before_anything_is_changed(smallest: Case, tmp_path: Path) -> None:
    containers.write(tmp_path / "a.safetensors", lazy(smallest.weights | {"v_pred": EMPTY}))
    model = stable_diffusion.build(smallest.config)
    with pytest.raises(UserError, match="v_prediction"):
        loading.load_weights(model, tmp_path / "a.safetensors", smallest.config)
    assert all(parameter.has_init for parameter in model.get_parameters())


@pytest.mark.parametrize("suffix", containers.SUFFIXES)
def test_a_converted_file_carries_the_metadata_of_its_source(smallest: Case, tmp_path: Path, suffix: str) -> None:
    said = {"modelspec.author": "Ada", "modelspec.license": "openrail++", "modelspec.predict_key": "epsilon"}
    stale = {"modelspec.hash_sha256": "0x12", "format": "pt"}
    containers.write(tmp_path / "a.safetensors", lazy(smallest.weights), said | stale)
    loading.convert(tmp_path / "a.safetensors", tmp_path / f"b{suffix}", smallest.config, "float16")
    expected = said | {"modelspec.prediction_type": "epsilon"}
    format_ = {"format": "pt"} if suffix == ".safetensors" else {}
    assert containers.read(tmp_path / f"b{suffix}").metadata == expected | format_
    loading.convert(tmp_path / f"b{suffix}", tmp_path / "c.ckpt", smallest.config, "float16")
    assert containers.read(tmp_path / "c.ckpt").metadata == expected


def test_a_checkpoint_for_mindspore_says_v_prediction_like_any_file(smallest: Case, tmp_path: Path) -> None:
    containers.write(tmp_path / "a.ckpt", lazy(smallest.weights), {"modelspec.prediction_type": "v"})
    with pytest.raises(UserError, match=r"modelspec\.prediction_type says prediction_type v_prediction"):
        reader.read(tmp_path / "a.ckpt", {}, smallest.config)


def test_mindspore_loads_a_checkpoint_that_carries_metadata(smallest: Case, tmp_path: Path) -> None:
    containers.write(tmp_path / "a.safetensors", lazy(smallest.weights), {"modelspec.prediction_type": "epsilon"})
    loading.convert(tmp_path / "a.safetensors", tmp_path / "a.ckpt", smallest.config, "float32")
    model = stable_diffusion.build(smallest.config)
    parameters = ms.load_checkpoint(str(tmp_path / "a.ckpt"))
    assert ms.load_param_into_net(model, parameters, strict_load=True)[0] == []


def test_the_prediction_type_has_one_place() -> None:
    assert statements.prediction_type([]) == "epsilon"
    v_prediction = [Statement(statements.PREDICTION_TYPE, "v_prediction", "the tensor v_pred")]
    assert statements.prediction_type(v_prediction) == "v_prediction"
    assert statements.carried_metadata(v_prediction, {}) == {"modelspec.prediction_type": "v"}
    ztsnr = Statement(statements.ZERO_TERMINAL_SNR, True, "the tensor ztsnr")
    assert json.loads(statements.carried_metadata([ztsnr], {})["scheduler.rescale_betas_zero_snr"]) is True


def test_a_config_can_describe_another_scale(smallest: Case) -> None:
    said = [Statement(statements.SCALING_FACTOR, 0.18215, "vae/config.json")]
    with pytest.raises(UserError, match=r"give a --config with model\.vae\.scale_factor 0\.18215"):
        statements.check(said, accepted_values.accepted_values(ModelConfig()), "model")
    vae = dataclasses.replace(ModelConfig().vae, scale_factor=0.18215)
    statements.check(said, accepted_values.accepted_values(dataclasses.replace(ModelConfig(), vae=vae)), "model")


def test_every_marker_tensor_is_refused(open_file: Open) -> None:
    for name in MARKER_TENSORS:
        with pytest.raises(UserError, match=f"the tensor {name} says"):
            open_file({name: EMPTY})


@pytest.mark.parametrize(("name", "network"), [("v_pred", "unet"), ("ztsnr", "unet"), ("latents_mean", "vae")])
def test_statements_of_a_network_that_another_file_has_do_not_count(
    smallest: Case, tmp_path: Path, name: str, network: str
) -> None:
    path = tmp_path / "a.safetensors"
    containers.write(path, lazy(smallest.weights | {name: EMPTY}))
    shapes = key_mapping.parameter_shapes(smallest.model)
    assert set(reader.read(path, shapes, smallest.config, [network]).tensors) == set(shapes)
    (other,) = {"unet", "vae"} - {network}
    with pytest.raises(UserError, match=f"the tensor {name} says"):
        reader.read(path, shapes, smallest.config, [other])


def test_metadata_of_a_network_that_another_file_has_is_not_carried(smallest: Case, tmp_path: Path) -> None:
    said = {"modelspec.predict_key": "v", "ss_zero_terminal_snr": "True", "vae.scaling_factor": "0.3"}
    containers.write(tmp_path / "a.safetensors", lazy(smallest.weights), said | {"modelspec.author": "Ada"})
    assert reader.read(tmp_path / "a.safetensors", {}, smallest.config, ["unet"]).metadata == {
        "modelspec.author": "Ada",
        "vae.scaling_factor": "0.3",
    }
