"""Configs of v-prediction: the statements of a single file that they accept and refuse."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gm.checkpoints import containers, loading, reader
from gm.config.model import ModelConfig, ScheduleConfig
from gm.errors import UserError
from tests.checkpoints.files import lazy
from tests.checkpoints.v_prediction import ALPHAS, EMPTY, LEAVE_OUT, zero_terminal_snr
from tests.reference.case import Case

Open = Callable[..., None]


V = ScheduleConfig(prediction="v_prediction")
ZERO_SNR = ScheduleConfig(prediction="v_prediction", rescale_betas_zero_snr=True)


def model_of(case: Case, schedule: ScheduleConfig) -> ModelConfig:
    return dataclasses.replace(case.config, schedule=schedule)


@pytest.fixture
def read_as(smallest: Case, tmp_path: Path) -> Open:
    """Return a function that reads the smallest model, with tensors and metadata added, under a noise schedule."""

    def read(schedule: ScheduleConfig, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
        path = tmp_path / "model.safetensors"
        containers.write(path, lazy(smallest.weights | tensors), metadata)
        reader.read(path, {}, model_of(smallest, schedule))

    return read


@pytest.mark.parametrize(
    ("schedule", "tensors", "metadata"),
    [
        (ZERO_SNR, {"v_pred": EMPTY, "ztsnr": EMPTY}, {}),  # NoobAI-XL V-Pred
        (ZERO_SNR, {}, {"modelspec.predict_key": "v", "ss_zero_terminal_snr": "True"}),
        (ZERO_SNR, {}, {}),
        (ZERO_SNR, {"alphas_cumprod": zero_terminal_snr().astype(np.float16)}, {}),
        (V, {"v_pred": EMPTY}, {"ss_v_parameterization": "True"}),
        (V, {"alphas_cumprod": ALPHAS}, {"modelspec.prediction_type": "v"}),
    ],
)
def test_a_config_of_v_prediction_accepts_such_files(
    read_as: Open,
    caplog: pytest.LogCaptureFixture,
    schedule: ScheduleConfig,
    tensors: dict[str, np.ndarray],
    metadata: dict[str, str],
) -> None:
    caplog.set_level(logging.WARNING)
    read_as(schedule, tensors, metadata)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("schedule", "tensors", "metadata", "message"),
    [
        (
            ZERO_SNR,
            {},
            {"modelspec.prediction_type": "epsilon"},
            f"prediction_type epsilon instead of v_prediction; {LEAVE_OUT}prediction epsilon",
        ),
        (
            V,
            {"ztsnr": EMPTY},
            {},
            f"rescale_betas_zero_snr true instead of false; {LEAVE_OUT}rescale_betas_zero_snr true and "
            "model.schedule.prediction v_prediction",
        ),
        (
            ZERO_SNR,
            {"alphas_cumprod": ALPHAS},
            {},
            "the tensor alphas_cumprod says rescale_betas_zero_snr false instead of true; "
            f"{LEAVE_OUT}rescale_betas_zero_snr false",
        ),
        (ZERO_SNR, {"betas": np.linspace(1e-4, 0.02, 1000)}, {}, "trained_betas of its own"),
        (ZERO_SNR, {"edm_vpred.sigma_max": np.array(120.0)}, {}, "CosXL.*; such models are not supported; use one"),
        (ZERO_SNR, {}, {"modelspec.prediction_type": "sample"}, "such models are not supported; use one that"),
    ],
)
def test_a_config_of_v_prediction_refuses_others_and_names_the_config_to_use(
    read_as: Open,
    schedule: ScheduleConfig,
    tensors: dict[str, np.ndarray],
    metadata: dict[str, str],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        read_as(schedule, tensors, metadata)


def test_a_file_of_v_prediction_without_a_word_of_zero_terminal_snr_is_reported(
    read_as: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    read_as(ZERO_SNR, {"v_pred": EMPTY})
    (message,) = caplog.messages
    assert message.endswith("model.safetensors says nothing of zero terminal SNR, which the config has")


@pytest.mark.parametrize("suffix", containers.SUFFIXES)
def test_a_converted_file_of_v_prediction_says_so(smallest: Case, tmp_path: Path, suffix: str) -> None:
    containers.write(tmp_path / "a.safetensors", lazy(smallest.weights | {"v_pred": EMPTY, "ztsnr": EMPTY}))
    loading.convert(tmp_path / "a.safetensors", tmp_path / f"b{suffix}", model_of(smallest, ZERO_SNR), "float32")
    reader.read(tmp_path / f"b{suffix}", {}, model_of(smallest, ZERO_SNR))
    with pytest.raises(UserError, match="prediction_type v_prediction instead of epsilon"):
        reader.read(tmp_path / f"b{suffix}", {}, smallest.config)
    with pytest.raises(UserError, match="rescale_betas_zero_snr true instead of false"):
        reader.read(tmp_path / f"b{suffix}", {}, model_of(smallest, V))
