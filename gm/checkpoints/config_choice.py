"""The shipped config of a model, chosen by its weights, for commands without `--config`.

Family and sizes follow from the tensors. The prediction of the UNet is that of the metadata (statements.py); Stable
Diffusion 2 was published with both kinds and says nothing in a single file, where ComfyUI's rule decides
(`SD20.model_type` in comfy/supported_models.py).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gm import config as configuration
from gm.checkpoints import containers, detect, diffusers_configs, diffusers_format, single_file_statements
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.checkpoints.statements import PREDICTION_TYPE, ZERO_TERMINAL_SNR, Statement
from gm.config import paths
from gm.config.model import FAMILIES, PREDICTIONS, ModelConfig
from gm.config.parser import DEFAULT_CONFIG

log = logging.getLogger("gm")

_V_PREDICTION_STD = 0.09  # ComfyUI's threshold
_LAST_NORM = re.compile(
    r".*(?:output_blocks\.(\d+)\.1|up_blocks\.(\d+)\.attentions\.(\d+))\.transformer_blocks\.0\.norm1\.(?:bias|beta)"
)


@dataclass(frozen=True)
class _Choice:
    """A config file, the fields of its model's schedule that the weights need, and a description of the model."""

    path: str
    schedule: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class _Source:
    """A checkpoint's tensors by key, its statements, and its kind as `detect.detect_family` returns it."""

    tensors: Mapping[str, LazyTensor]
    entries: list[Statement]
    kind: str


def config_for(weight: str | Path, default: str = DEFAULT_CONFIG) -> tuple[str, dict[str, Any]]:
    """Return the shipped config of the model at `weight`, a file or a diffusers folder, and sections that override it.

    It is the `default` one for a path that does not exist and for a model that is not recognized, of which loading says
    what is wrong. Any other choice is logged. Raises UserError for a file that cannot be read.
    """
    path = Path(paths.find_shipped(weight))
    if not path.exists():
        return default, {}
    choice = _choose(path, path.stat().st_mtime_ns) or _Choice(default, {}, "")
    if choice.path != default or choice.schedule:
        fields = "".join(f", model.schedule.{name} {value}" for name, value in choice.schedule.items())
        log.info("%s is %s: --config %s%s", weight, choice.reason, choice.path, fields)
    return choice.path, {"model": {"schedule": dict(choice.schedule)}} if choice.schedule else {}


@lru_cache(maxsize=8)
def _choose(path: Path, modified: int) -> _Choice | None:
    """Return the choice for the checkpoint at `path`, which was `modified` then; None for no model that is known."""
    source = _read(path)
    candidates = {
        name: configuration.load(name).model
        for name in detect.SHIPPED_CONFIGS.get(source.kind, ())
        if Path(paths.find_shipped(name)).is_file()
    }
    if not candidates:
        return None
    fitting = {name: model for name, model in candidates.items() if _fits(model, source.tensors)} or candidates
    prediction, reason = _prediction(source)
    same = {name: model for name, model in fitting.items() if model.schedule.prediction == prediction} or fitting
    name, model = next(iter(same.items()))
    zero_snr = prediction == "v_prediction" and _says(source.entries, ZERO_TERMINAL_SNR) is True
    schedule = {
        field: value
        for field, value in (("prediction", prediction), ("rescale_betas_zero_snr", zero_snr))
        if getattr(model.schedule, field) != value
    }
    title = FAMILIES[model.family].title + (" refiner" if model.is_refiner else "")
    return _Choice(name, schedule, f"{title}{reason}")


def _read(path: Path) -> _Source:
    if path.is_dir():
        unet = path / "unet"
        kind = diffusers_format.detect_family(path)
        tensors = diffusers_format.read_network(unet) if kind else {}
        return _Source(tensors, diffusers_configs.read(path, []), kind)
    file = containers.read_weights(path)
    kind = detect.detect_family({key: tensor.shape for key, tensor in file.tensors.items()})
    shipped = detect.SHIPPED_CONFIGS.get(kind)
    model = configuration.load(shipped[0]).model if shipped else ModelConfig()
    return _Source(file.tensors, single_file_statements.read(path, file.tensors, file.metadata, model), kind)


def _fits(model: ModelConfig, tensors: Mapping[str, LazyTensor]) -> bool:
    """Return whether the channels and the context of a UNet are those of `model`."""
    first = (f"{prefix}.weight" for prefix in ("input_blocks.0.0", "input_blocks.0.0.conv", "conv_in"))
    endings = tuple(first)
    channels = {t.shape[0] for key, t in tensors.items() if key.endswith(endings) and "coder" not in key}
    widths = {t.shape[-1] for key, t in tensors.items() if key.endswith("attn2.to_k.weight")}
    return channels == {model.unet.model_channels} and widths == {model.unet.context_dim}


def _prediction(source: _Source) -> tuple[str, str]:
    """Return the prediction of the UNet, and its source where the checkpoint does not state it."""
    prediction_type = _says(source.entries, PREDICTION_TYPE)
    if prediction_type is not None:
        # Another kind of prediction is refused when the weights are loaded.
        return (prediction_type if prediction_type in PREDICTIONS else "epsilon"), ""
    if source.kind != "sd2":
        return "epsilon", ""
    matches = {key: match for key in source.tensors if (match := _LAST_NORM.fullmatch(key))}
    if not matches:
        return "epsilon", ", which does not say what it predicts; epsilon is assumed"
    last = max(matches, key=lambda key: [int(number) for number in matches[key].groups() if number])
    is_v = float(np.std(source.tensors[last].read().astype(np.float64))) > _V_PREDICTION_STD
    prediction = "v_prediction" if is_v else "epsilon"
    return prediction, f", which does not say what it predicts; by its weights (ComfyUI's rule) {prediction}"


def _says(entries: list[Statement], name: str) -> Any:
    return next((entry.value for entry in entries if entry.name == name), None)
