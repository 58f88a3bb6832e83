"""LoRA files merged into the weights of a model while they are loaded.

A weight W becomes W + Σ strength · change(W), summed in float32 from the weight as it is in its file, and then gets the
precision of the model: float16 weights are rounded once. A DoRA's change is that of W alone, so that the order of
several LoRAs has no effect. Nothing remains at run time.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gm.checkpoints.key_mapping import ParameterShapes
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.checkpoints.misfit import shorten_keys
from gm.checkpoints.value_checks import is_finite
from gm.checkpoints.weight_changes import WeightChanges
from gm.config.model import PREDICTIONS, ModelConfig
from gm.errors import UserError, shorten
from gm.lora import detection, files, methods, reading
from gm.lora.files import LoraFile, LoraRecord
from gm.lora.methods import Method
from gm.lora.reading import LoraContent, Module
from gm.lora.targets import Target, targets

log = logging.getLogger("gm")

MERGED = "merged_loras"  # metadata of a converted file
# Text encoder 1 of SDXL and Stable Diffusion 1 has no projection that an image depends on; OneTrainer has a LoRA of it.
_NOT_USED = re.compile(r"(lora_te1?_|text_encoder\.)text_projection")


@dataclass(frozen=True)
class Change:
    """The change that one module of a LoRA file makes to its target."""

    source: LoraFile
    module: Module
    method: Method
    target: Target

    def apply(self, weight: np.ndarray, result: np.ndarray) -> None:
        """Add the change of the parameter `weight` to `result`, both float32; they may be one array without DoRA."""
        parts = {name: self._read(name, tensor) for name, tensor in self.module.parts.items()}
        # The change is linear in each factor: scaling a small one saves two passes over a large array.
        factor = self.method.factor(parts)
        parts[factor] = parts[factor] * np.float32(self._scale(parts) * (1.0 if self.is_dora else self.source.strength))
        view = self.target.view(result)
        delta = self.method.delta(parts).reshape(view.shape)
        magnitude = _magnitude(self.module.parts)
        if magnitude:
            axis = methods.magnitude_axis(self.module.parts[magnitude].shape, self.target.shape, _is_peft(magnitude))
            assert axis is not None  # `_check_shapes`
            delta = methods.decomposed(self.target.view(weight), delta, parts[magnitude], axis)
            delta *= np.float32(self.source.strength)
        view += delta

    @property
    def is_dora(self) -> bool:
        """Whether the change depends on the weight."""
        return bool(_magnitude(self.module.parts))

    def _scale(self, parts: Mapping[str, np.ndarray]) -> float:
        alpha = float(parts["alpha"].reshape(())) if "alpha" in parts else self.module.alpha
        shapes = {name: tensor.shape for name, tensor in self.module.parts.items()}
        return methods.scale(alpha, self.method.rank(shapes), self.module.rank_stabilized)

    def _read(self, name: str, tensor: LazyTensor) -> np.ndarray:
        values = tensor.read().astype(np.float32)
        tensor.release()
        if not is_finite(values):
            raise UserError(
                f"{self.source.path}: {name} of {self.module.name} holds NaN or infinite values; take the LoRA from "
                "another file"
            )
        return values


class LoraChanges(WeightChanges):
    """The changes of several LoRA files by the parameters that they change."""

    def __init__(self, records: Sequence[LoraRecord], changes: Mapping[str, Sequence[Change]]) -> None:
        self.records = records
        self.changes = changes

    def __contains__(self, name: object) -> bool:
        return name in self.changes

    def apply(self, name: str, values: np.ndarray) -> np.ndarray:
        weight = values.astype(np.float32)
        result = weight.copy() if any(change.is_dora for change in self.changes[name]) else weight
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            for change in self.changes[name]:
                change.apply(weight, result)
        if not is_finite(result):
            sources = ", ".join(str(source) for source in dict.fromkeys(change.source for change in self.changes[name]))
            raise UserError(f"--lora_weight {sources}: {name} is no longer finite; lower the strength")
        return result

    def check_source(self, path: str, metadata: Mapping[str, str]) -> None:
        """Raise UserError if one of the LoRAs is merged into the weights already; a line names others that are."""
        merged = _merged(metadata)
        hashes = {record.hash for record in self.records}
        twice = [record for record in merged if record.hash in hashes]
        if twice:
            raise UserError(
                f"{path} has the LoRA {files.describe(twice)} merged already; leave it out of --lora_weight, or give "
                "the weights without it"
            )
        if merged:
            log.info("%s has LoRAs merged already: %s", path, files.describe(merged))

    def metadata(self, source: Mapping[str, str]) -> dict[str, str]:
        return {MERGED: json.dumps(files.as_json([*_merged(source), *self.records]))} if self.records else {}


def prepare(texts: Sequence[str], shapes: ParameterShapes, config: ModelConfig) -> LoraChanges:
    """Return the changes of the LoRAs that `--lora_weight` names, for the model with these parameters.

    Logs a line for each. Raises UserError as `files.parse_all` and `reading.read` do, and for a file above or below
    strength 0 of which something matches no layer of the model.
    """
    loras = files.parse_all(texts)
    by_name = targets(shapes, config) if loras else {}
    changes: dict[str, list[Change]] = {}
    for lora in loras:
        for change in _changes(lora, by_name, config):
            changes.setdefault(change.target.parameter, []).append(change)
    return LoraChanges(files.records(loras), changes)


def _changes(lora: LoraFile, by_name: Mapping[str, Target], config: ModelConfig) -> list[Change]:
    content = reading.read(lora.path)
    if content.embeddings:
        log.info(
            "%s: the embeddings in it, %s, are used with --textual_inversion_weight %s",
            lora.path,
            ", ".join(content.embeddings),
            lora.path,
        )
    if not content.modules:
        seems = detection.detect_without_modules(content.other_keys)
        raise UserError(f"--lora_weight {lora.path} is not a LoRA" + (f": it seems to be {seems}" if seems else ""))
    not_used = [each.name for each in content.modules if each.name not in by_name and _NOT_USED.fullmatch(each.name)]
    if not_used:
        log.info("%s: not used: %s, which no image depends on", lora.path, shorten_keys(not_used))
    modules = {module.name: module for module in content.modules if module.name not in not_used}
    unmatched = [name for name in modules if name not in by_name] + content.other_keys
    if lora.strength == 0:
        log.info("%s: strength 0, not used%s", lora.path, _describe_unmatched(unmatched))
        return []
    changes = [_change(lora, modules[name], target) for name, target in by_name.items() if name in modules]
    misshapen = [problem for change in changes if (problem := _check_shapes(change))]
    if unmatched or misshapen:
        _refuse(lora, content, unmatched, misshapen, config)
    changes = _without_duplicates(lora, changes)
    log.info("merging %s into %d layers%s", lora, len(changes), _describe(content))
    _check_prediction(lora, content, config)
    return changes


def _check_prediction(lora: LoraFile, content: LoraContent, config: ModelConfig) -> None:
    """Warn of a LoRA that was trained on a model of the other kind of prediction, by its ModelSpec metadata."""
    prediction = content.metadata.get("modelspec.prediction_type", "")
    prediction = "v_prediction" if prediction == "v" else prediction  # kohya's name
    if prediction in PREDICTIONS and prediction != config.schedule.prediction:
        log.warning(
            "%s was trained on a model that predicts %s, and this one predicts %s: images may be spoiled; use it with "
            "a model of its kind",
            lora.path,
            prediction,
            config.schedule.prediction,
        )


def _change(lora: LoraFile, module: Module, target: Target) -> Change:
    """Return the change of a module; UserError if its tensors are incomplete or not of one method."""
    parts = {name: tensor for name, tensor in module.parts.items() if name not in ("alpha", "dora_scale", "magnitude")}
    method = methods.find(parts)
    if method is None:
        names = ", ".join(sorted(module.parts))
        raise UserError(
            f"{lora.path}: {module.name} has {names} alone, which is no complete LoRA, LoHa or LoKr; download or copy "
            "the file again"
        )
    for name, tensor in module.parts.items():
        if name != "alpha" and not tensor.dtype.startswith(("float", "bfloat")):
            raise UserError(f"{lora.path}: {name} of {module.name} holds {tensor.dtype} values; give a file of floats")
    return Change(lora, module, method, target)


def _check_shapes(change: Change) -> str:
    """Return what does not fit in the shapes of a module; "" if all does."""
    module, target = change.module, change.target
    shapes = {name: tensor.shape for name, tensor in module.parts.items()}
    shape = change.method.shape(shapes)
    if not methods.fits(shape, target.shape):
        mismatch = "factors that do not fit each other" if shape is None else f"a change of {list(shape)}"
        return f"{module.name}: {mismatch}, the model's layer has {list(target.shape)}"
    if math.prod(shapes.get("alpha", ())) != 1:
        return f"{module.name}: alpha of {list(shapes['alpha'])}, which should be one number"
    magnitude = _magnitude(module.parts)
    if magnitude and methods.magnitude_axis(shapes[magnitude], target.shape, _is_peft(magnitude)) is None:
        return f"{module.name}: {magnitude} of {list(shapes[magnitude])}, the model's layer has {list(target.shape)}"
    return ""


def _refuse(
    lora: LoraFile, content: LoraContent, unmatched: list[str], misshapen: list[str], config: ModelConfig
) -> None:
    """Raise UserError for a file that is not for this model as a whole."""
    other = detection.detect_base_model(content, config.unet.context_dim, unmatched)
    seems = f"it seems to be {other}; give one for {config.version}" if other else f"give one for {config.version}"
    problems = []
    if unmatched:
        total = len(content.modules) + len(content.other_keys)
        problems.append(f"{len(unmatched)} of {total} names match no layer ({shorten_keys(unmatched)})")
    if misshapen:
        problems.append(f"{len(misshapen)} of another shape ({shorten(misshapen[0])})")
    raise UserError(f"--lora_weight {lora.path} does not fit the model: {seems}; {'; '.join(problems)}")


def _without_duplicates(lora: LoraFile, changes: list[Change]) -> list[Change]:
    """Return one change a layer: some files have each module twice, by the published and by diffusers' path.

    As in diffusers and ComfyUI, that of diffusers' path is used, which comes last among the names of a layer.
    """
    by_target = {(change.target.parameter, change.target.first_row): change for change in changes}
    if len(by_target) < len(changes):
        log.info(
            "%s has %d layers under two names; those of diffusers' path are used",
            lora.path,
            len(changes) - len(by_target),
        )
    return list(by_target.values())


def _magnitude(parts: Mapping[str, LazyTensor]) -> str:
    return next((name for name in ("dora_scale", "magnitude") if name in parts), "")


def _is_peft(magnitude: str) -> bool:
    return magnitude == "magnitude"


def _describe_unmatched(unmatched: list[str]) -> str:
    return f"; {len(unmatched)} of its names match no layer ({shorten_keys(unmatched)})" if unmatched else ""


def _describe(content: LoraContent) -> str:
    """Return the entries of the file's metadata that concern its user."""
    titles = {
        "ss_sd_model_name": "trained on",
        "modelspec.trigger_phrase": "trigger phrase",
    }
    statements = {title: content.metadata.get(key, "") for key, title in titles.items()}
    usual = ("", "None", "epsilon")
    return "".join(f"; {title}: {shorten(value, 80)}" for title, value in statements.items() if value not in usual)


def _merged(metadata: Mapping[str, str]) -> list[LoraRecord]:
    try:
        return files.from_json(json.loads(metadata.get(MERGED, "[]")))
    except (ValueError, TypeError, RecursionError):
        return []
