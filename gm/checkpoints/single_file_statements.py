"""Statements in and beside a single file: metadata, marker tensors, tables of the noise schedule, a YAML file.

Sources: Stability AI's ModelSpec (github.com/Stability-AI/ModelSpec) with kohya's and ComfyUI's additions; the marker
tensors that ComfyUI looks for in SDXL files (`SDXL.model_type` in comfy/supported_models.py) and NoobAI, Playground 2.5
and CosXL have; the buffers of latent diffusion's DDPM class, which OneTrainer writes; the YAML file of the same name
beside a checkpoint by which AUTOMATIC1111 chooses the model's class.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gm.checkpoints import detect
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.checkpoints.statements import (
    CARRIED,
    LATENTS_MEAN,
    PREDICTION_TYPE,
    PREDICTION_TYPES,
    SCALING_FACTOR,
    TRAINED_BETAS,
    ZERO_TERMINAL_SNR,
    Statement,
)
from gm.config.model import ModelConfig, ScheduleConfig
from gm.diffusion.schedule import training_sigmas

_EDM = "EDM (as Playground 2.5)"
_EDM_V = "v_prediction with EDM's noise levels (as CosXL)"
_MARKER_TENSORS: dict[str, tuple[str, Any]] = {
    "v_pred": (PREDICTION_TYPE, "v_prediction"),
    "ztsnr": (ZERO_TERMINAL_SNR, True),
    "edm_mean": (PREDICTION_TYPE, _EDM),
    "edm_std": (PREDICTION_TYPE, _EDM),
    "edm_vpred.sigma_max": (PREDICTION_TYPE, _EDM_V),
    "edm_vpred.sigma_min": (PREDICTION_TYPE, _EDM_V),
    "latents_mean": (LATENTS_MEAN, "of its own"),
    "latents_std": (LATENTS_MEAN, "of its own"),
}
MARKER_TENSORS = frozenset(_MARKER_TENSORS)
SCALE_TENSOR = "scale_factor"  # latent diffusion's buffer of the scale of latents
_PREDICTION_KEYS = ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type")
# Metadata of kohya's trainers and of programs that write the marker tensors' names there.
_FLAGS = {
    "ss_v_parameterization": (PREDICTION_TYPE, "v_prediction"),
    "v_pred": (PREDICTION_TYPE, "v_prediction"),
    "ss_zero_terminal_snr": (ZERO_TERMINAL_SNR, True),
    "ztsnr": (ZERO_TERMINAL_SNR, True),
}
# The statements that metadata make, by key.
METADATA_NAMES = dict.fromkeys(_PREDICTION_KEYS, PREDICTION_TYPE) | {key: name for key, (name, _) in _FLAGS.items()}
# ModelSpec's other entries on how to use a model, with their usual values.
_USES = {
    "modelspec.timestep_range": ("0,999", "0,1000"),
    "modelspec.encoder_layer": ("1", "2", "-2"),
}
_ARCHITECTURES = {
    "base": ("stable-diffusion-xl-v1-base",),
    "refiner": ("stable-diffusion-xl-v1-refiner",),
    "sd1": ("stable-diffusion-v1",),
    "sd2": ("stable-diffusion-v2-512", "stable-diffusion-v2-768-v"),
}
# Architectures that say what the network predicts, as kohya writes them (library/sai_model_spec.py).
_PREDICTIONS_OF = {"stable-diffusion-v2-512": "epsilon", "stable-diffusion-v2-768-v": "v_prediction"}
# sgm's classes of `denoiser_config.params.scaling_config.target`, by the end of their names.
_SCALINGS = {
    "EpsScaling": "epsilon",
    "VScaling": "v_prediction",
    "VScalingWithEDMcNoise": _EDM_V,
    "EDMScaling": _EDM,
}
_MAX_YAML_SIZE = 1 << 20


def read(
    path: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str], config: ModelConfig
) -> list[Statement]:
    """Return the statements of the file at `path`, with these `tensors` and `metadata`, about its model."""
    return [
        *_read_metadata(metadata, detect.model_kind(config)),
        *_read_markers(tensors),
        *_read_schedule(tensors, config),
        *_read_yaml(path.with_suffix(".yaml")),
    ]


def _read_metadata(metadata: Mapping[str, str], kind: str) -> Iterator[Statement]:
    for key in _PREDICTION_KEYS:
        value = metadata.get(key, "").strip()
        if value.lower() not in ("", "none", "null"):
            yield Statement(PREDICTION_TYPE, PREDICTION_TYPES.get(value.lower(), value), f"the metadata {key}")
    for key, (name, meaning) in _FLAGS.items():
        if key in metadata and metadata[key].strip().lower() not in ("false", "0", "none", "null"):
            yield Statement(name, meaning, f"the metadata {key}")
    for name in CARRIED:
        if name in metadata:
            yield Statement(name, _parse_json(metadata[name]), "the metadata")
    for key, usual in _USES.items():
        if metadata.get(key, "") not in ("", "None", *usual):
            yield Statement(key, metadata[key], "the metadata")
    architecture = metadata.get("modelspec.architecture", "")
    if architecture in _PREDICTIONS_OF:
        place = "the metadata modelspec.architecture"
        yield Statement(PREDICTION_TYPE, _PREDICTIONS_OF[architecture], place)
    if architecture not in ("", "None", *_ARCHITECTURES[kind]):
        yield Statement("modelspec.architecture", architecture, "the metadata")


def _read_markers(tensors: Mapping[str, LazyTensor]) -> Iterator[Statement]:
    for key, (name, value) in _MARKER_TENSORS.items():
        if key in tensors:
            yield Statement(name, value, f"the tensor {key}")
    scale = tensors.get(SCALE_TENSOR)
    if scale is not None and scale.shape in ((), (1,)):
        yield Statement(SCALING_FACTOR, round(float(scale.read().reshape(())), 7), f"the tensor {SCALE_TENSOR}")


def _read_schedule(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> Iterator[Statement]:
    """Yield a statement if a table of the noise schedule is that of another one.

    Only a rising or falling table can be a schedule; no program reads another.
    """
    for key in ("alphas_cumprod", "betas", "denoiser.sigmas"):
        if key not in tensors or len(tensors[key].shape) != 1 or not tensors[key].shape[0]:
            continue
        values = np.sort(tensors[key].read().astype(np.float64))
        if not (np.array_equal(values, tensors[key].read()) or np.array_equal(values[::-1], tensors[key].read())):
            continue
        if values[0] == values[-1] or values[0] < 0:
            continue
        if key == "betas":
            alphas = np.sort(np.cumprod(1 - values))
        else:
            alphas = values if key == "alphas_cumprod" else np.sort(1 / (1 + values**2))
        if _is_schedule(alphas, config.schedule):
            continue
        has_zero_snr = config.schedule.rescale_betas_zero_snr
        if has_zero_snr and _is_schedule(alphas, dataclasses.replace(config.schedule, rescale_betas_zero_snr=False)):
            yield Statement(ZERO_TERMINAL_SNR, False, f"the tensor {key}")
        elif alphas[0] < 1e-4 and not has_zero_snr:
            yield Statement(ZERO_TERMINAL_SNR, True, f"the tensor {key}")
        else:
            yield Statement(TRAINED_BETAS, "of its own", f"the tensor {key}")


def _is_schedule(alphas_cumprod: np.ndarray, schedule: ScheduleConfig) -> bool:
    """Whether ᾱ, rising, is that of `schedule`, to the precision of bfloat16."""
    expected = np.sort(1 / (1 + training_sigmas(schedule) ** 2))
    is_as_long = alphas_cumprod.shape == expected.shape
    return is_as_long and np.allclose(alphas_cumprod, expected, rtol=0.01, atol=1e-3)


def _read_yaml(path: Path) -> Iterator[Statement]:
    """Yield the statements of a config of latent diffusion or sgm at `path`; any other file is not used."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_YAML_SIZE:
            return
        params = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"]
        items = dict(params)
    except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError):
        return
    if "parameterization" in items:
        prediction = str(items["parameterization"])
        yield Statement(PREDICTION_TYPE, PREDICTION_TYPES.get(prediction.lower(), prediction), path.name)
    scaling = items.get("denoiser_config")
    for key in ("params", "scaling_config", "target"):
        scaling = scaling.get(key) if isinstance(scaling, dict) else None
    if isinstance(scaling, str):
        class_ = scaling.rpartition(".")[2]
        yield Statement(PREDICTION_TYPE, _SCALINGS.get(class_, class_), path.name)
    if "scale_factor" in items:
        yield Statement(SCALING_FACTOR, items["scale_factor"], path.name)


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
