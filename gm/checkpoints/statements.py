"""Statements of a checkpoint about its model, against the model that the config describes.

Tensors do not show what a network predicts, how many heads it has or how its latents are scaled; files say so beside
the tensors, each program in its own way. `single_file_statements` and `diffusers_configs` translate them into the
names of diffusers' configs. `check` refuses a checkpoint whose statements contradict the model.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gm.config.model import PREDICTIONS, ModelConfig
from gm.errors import UserError, shorten

log = logging.getLogger("gm")

PREDICTION_TYPE = "scheduler.prediction_type"
ZERO_TERMINAL_SNR = "scheduler.rescale_betas_zero_snr"
TRAINED_BETAS = "scheduler.trained_betas"
SCALING_FACTOR = "vae.scaling_factor"
LATENTS_MEAN = "vae.latents_mean"

# An accepted value is one of a tuple, or one for which a function returns true.
Accepted = tuple[Any, ...] | Callable[[Any], bool]

# Prediction types by the words of all programs, as diffusers names them.
PREDICTION_TYPES = {
    **dict.fromkeys(("epsilon", "eps", "e"), "epsilon"),
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "vpred", "v_pred", "velocity"), "v_prediction"),
    **dict.fromkeys(("sample", "x0", "x"), "sample"),
}
_MAX_SHOWN = 4  # in a message
_USE_OTHER = "such models are not supported; use one that predicts epsilon, the noise, or v_prediction, the velocity"
_USE_SAME = "use a model of the architecture that the config describes, or give a --config that describes this one"
_REMEDIES = {
    TRAINED_BETAS: "use a model with Stable Diffusion's noise schedule",
    "scheduler._class_name": _USE_OTHER,
    "unet.in_channels": "inpainting models have 9 input channels, instruct-pix2pix models 8, upscalers 7, "
    "depth-to-image models 5; use a text-to-image model",
    "unet.class_embed_type": "unCLIP models are conditioned on an image; use a text-to-image model",
    "unet.num_class_embeds": "upscalers have noise levels as classes; use a text-to-image model",
    "unet.time_cond_proj_dim": "an LCM that embeds the guidance scale is not supported; use its LCM-free base model",
    "unet.quantization_config": "quantized models are not supported; use a float16 file",
}
# Where the config's model section has the same value: it can describe such a model.
_CONFIG_FIELDS = {
    PREDICTION_TYPE: "model.schedule.prediction",
    ZERO_TERMINAL_SNR: "model.schedule.rescale_betas_zero_snr",
    SCALING_FACTOR: "model.vae.scale_factor",
    "scheduler.num_train_timesteps": "model.schedule.timesteps",
    "scheduler.beta_start": "model.schedule.beta_start",
    "scheduler.beta_end": "model.schedule.beta_end",
}
# Hashes of the tensors, which are others in the converted file, and the safetensors library's own entry.
_STALE_METADATA = ("format", "modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")
# Statements that go into the metadata of a converted file under their own names, and are read there again.
CARRIED = tuple(name for name in _CONFIG_FIELDS if name != PREDICTION_TYPE)


@dataclass(frozen=True)
class Statement:
    """`place` in a checkpoint says that `name`, "<network>.<field of diffusers' config>", is `value`."""

    name: str
    value: Any
    place: str


def check(statements: Iterable[Statement], accepted: Mapping[str, Accepted], source: str | Path) -> None:
    """Raise UserError naming what in `statements` contradicts the model; log what nothing here uses.

    `accepted` has the values that fit the model, by name.
    """
    statements = list(statements)
    wrong = [s for s in statements if s.name in accepted and not _is_accepted(s.value, accepted[s.name])]
    wrong = [
        s for number, s in enumerate(wrong) if (s.name, s.value) not in ((w.name, w.value) for w in wrong[:number])
    ]
    if wrong:
        described = _describe(wrong, lambda s: _instead_of(accepted[s.name]))
        raise UserError(
            f"{source} is another kind of model than the config describes: {described}; {_way_out(wrong[0])}"
        )
    names = {s.name for s in statements}
    if PREDICTION_TYPE in names and ZERO_TERMINAL_SNR not in names and accepted.get(ZERO_TERMINAL_SNR) == (True,):
        log.warning("%s says nothing of zero terminal SNR, which the config has", source)
    unused = [s for s in statements if s.name not in accepted]
    if unused:
        log.info("%s: not used: %s", source, _describe(unused))


def prediction_type(statements: Iterable[Statement]) -> str:
    """Return the network's prediction, by diffusers' name; epsilon for a checkpoint that does not state it."""
    return next((str(s.value) for s in statements if s.name == PREDICTION_TYPE), "epsilon")


def carried_metadata(statements: Iterable[Statement], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of a converted file: that of its source, and the source's other statements.

    The prediction type is under the name of Stability AI's ModelSpec, which other programs read.
    """
    carried = {key: value for key, value in metadata.items() if key not in _STALE_METADATA}
    statements = list(statements)
    for statement in statements:
        if statement.name in CARRIED:
            carried.setdefault(statement.name, json.dumps(statement.value))
    if any(statement.name == PREDICTION_TYPE for statement in statements):
        prediction = prediction_type(statements)
        carried.setdefault("modelspec.prediction_type", {"v_prediction": "v"}.get(prediction, prediction))
    return carried


def configured_metadata(config: ModelConfig) -> dict[str, str]:
    """Return the metadata of a converted file for properties that no tensor shows and a reader would guess wrong.

    A file without a prediction type predicts epsilon, but for Stable Diffusion 2, of which both kinds are published.
    """
    schedule = config.schedule
    metadata = {}
    if schedule.prediction == "v_prediction" or config.family == "sd2":
        metadata["modelspec.prediction_type"] = {"v_prediction": "v"}.get(schedule.prediction, schedule.prediction)
    if schedule.rescale_betas_zero_snr:
        metadata[ZERO_TERMINAL_SNR] = json.dumps(True)
    return metadata


def _describe(statements: Sequence[Statement], comment: Callable[[Statement], str] = lambda _: "") -> str:
    """Return the first of `statements` as text, each with its comment, those of one place together."""
    by_place: dict[str, list[str]] = {}
    for statement in statements[:_MAX_SHOWN]:
        field = statement.name.partition(".")[2]
        by_place.setdefault(statement.place, []).append(f"{field} {_quote(statement.value)}{comment(statement)}")
    more = f" and {len(statements) - _MAX_SHOWN} more" if len(statements) > _MAX_SHOWN else ""
    return ", ".join(f"{place} says {', '.join(fields)}" for place, fields in by_place.items()) + more


def _is_accepted(value: Any, accepted: Accepted) -> bool:
    if callable(accepted):
        try:
            return accepted(value)
        except (TypeError, ValueError, IndexError):  # a damaged config may hold anything
            return False
    return any(_is_equal(value, each) for each in accepted)


def _is_equal(value: Any, other: Any) -> bool:
    numbers = (int, float)
    if isinstance(value, numbers) and isinstance(other, numbers):
        return math.isclose(value, other, rel_tol=1e-3)  # a file may hold it as float16
    return bool(value == other)


def _instead_of(accepted: Accepted) -> str:
    if callable(accepted):
        return ""
    return f" instead of {_quote(accepted[0])}" if accepted else " instead of none"


def _way_out(statement: Statement) -> str:
    if statement.name == PREDICTION_TYPE and statement.value not in PREDICTIONS:
        return _USE_OTHER
    if statement.name in _CONFIG_FIELDS:
        field = f"{_CONFIG_FIELDS[statement.name]} {_quote(statement.value)}"
        if statement.name == ZERO_TERMINAL_SNR and statement.value is True:
            field += f" and {_CONFIG_FIELDS[PREDICTION_TYPE]} v_prediction"
        if statement.name in (PREDICTION_TYPE, ZERO_TERMINAL_SNR):
            return f"if that is right, leave out --config, or give one with {field}"
        return f"if that is right, give a --config with {field}"
    return _REMEDIES.get(statement.name, _USE_SAME)


def _quote(value: Any) -> str:
    return shorten(value if isinstance(value, str) else json.dumps(value, default=str), 160)
