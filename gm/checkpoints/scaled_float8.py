"""Quantized layers as ComfyUI stores them: float8 weights whose values are to be multiplied by a scale.

Two generations, described in ComfyUI's QUANTIZATION.md and `convert_old_quants` of its comfy/utils.py:

- a tensor `scaled_fp8`, which only marks the file, and for each layer `scale_weight` and perhaps `scale_input`;
- for each layer `weight_scale` and perhaps `input_scale`; its format is in JSON, as bytes in a tensor `comfy_quant` or
  for all layers in the metadata `_quantization_metadata`.

A weight is its float8 values times the scale, which is one number or one a row. The scales of inputs serve products of
float8 activations, which are not computed here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gm.checkpoints import narrow_floats
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.errors import UserError, shorten

log = logging.getLogger("gm")

Tensors = dict[str, LazyTensor]

_METADATA_KEY = "_quantization_metadata"
_MARKER = "scaled_fp8"
_FORMAT = ".comfy_quant"
_WEIGHT_SCALES = (".scale_weight", ".weight_scale")
_INPUT_SCALES = (".scale_input", ".input_scale")
_MAX_FORMAT_SIZE = 10_000  # bytes of JSON
_UNET = "model.diffusion_model."  # some programs leave it out in the metadata


def dequantize(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> tuple[Tensors, dict[str, str]]:
    """Return tensors and metadata of a file with each scale applied to its weight, and without scales and markers.

    Those of a file without scales are returned as they are. Raises UserError for a format other than float8, and for a
    scale that does not fit its weight.
    """
    formats = _layer_formats(path, tensors, metadata)
    for layer, name in formats.items():
        if name not in narrow_floats.FLOAT8:
            raise UserError(
                f"{path}: {layer or 'it'} is quantized as {name}, which is not supported; "
                "use the float16 or float8 file of the model"
            )
    markers = {key for key in tensors if key.rpartition(".")[2] == _MARKER or key.endswith(_FORMAT)}
    inputs = {key for key in tensors if key.endswith(_INPUT_SCALES)}
    result = {key: tensor for key, tensor in tensors.items() if key not in markers | inputs}
    for layer, name in formats.items():
        _view_as_float8(result, layer, name)
    for key in [key for key in result if key.endswith(_WEIGHT_SCALES)]:
        weight = _weight_of(key, result)
        if weight is not None:
            result[weight] = _scaled(path, weight, result[weight], result.pop(key))
    if inputs:
        log.info("%s: %d scales of inputs are not used: activations are not float8 here", path, len(inputs))
    return result, {key: value for key, value in metadata.items() if key != _METADATA_KEY}


def _layer_formats(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the quantization format of each layer that the file describes."""
    described: dict[str, Any] = {}
    try:
        if _METADATA_KEY in metadata:
            described |= json.loads(metadata[_METADATA_KEY])["layers"]
        for key, tensor in tensors.items():
            if key.endswith(_FORMAT):
                if tensor.dtype != "uint8" or tensor.size > _MAX_FORMAT_SIZE:
                    raise ValueError(f"{key} is not a text")
                described[key.removesuffix(_FORMAT)] = json.loads(tensor.read().tobytes())
        return {layer: str(each["format"] if isinstance(each, dict) else each) for layer, each in described.items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: its description of quantized layers cannot be read ({shorten(repr(error))}); "
            "use the float16 file of the model"
        ) from error


def _view_as_float8(tensors: Tensors, layer: str, dtype: str) -> None:
    """Replace the layer's weight by its float8 values if the file keeps their bits as uint8."""
    for key in (f"{layer}.weight", f"{_UNET}{layer}.weight"):
        if key in tensors and tensors[key].dtype == "uint8":
            tensors[key] = _as_float8(tensors[key], dtype)


def _as_float8(bits: LazyTensor, dtype: str) -> LazyTensor:
    return LazyTensor(bits.shape, dtype, lambda: narrow_floats.decode(bits.read(), dtype), bits.release)


def _weight_of(scale: str, tensors: Tensors) -> str | None:
    """Return the key of the float weight that the tensor `scale` belongs to; an integer one is refused later."""
    layer = scale.rpartition(".")[0]
    for key in (f"{layer}.weight", layer):
        if key in tensors and not tensors[key].dtype.startswith(("int", "uint", "bool")):
            return key
    return None


def _scaled(path: Path, key: str, weight: LazyTensor, scale: LazyTensor) -> LazyTensor:
    """Return `weight` times `scale`, in float32."""
    rows = weight.shape[:1]
    if scale.shape in ((), (1,)):
        factor = scale.read().astype(np.float32).reshape(())
    elif rows and scale.shape in (rows, (*rows, *[1] * (len(weight.shape) - 1))):
        factor = scale.read().astype(np.float32).reshape(*rows, *[1] * (len(weight.shape) - 1))
    else:
        raise UserError(
            f"{path}: the scale of {key} has shape {list(scale.shape)}, which does not fit {list(weight.shape)}; "
            "one number or one a row is supported: use the float16 file of the model"
        )
    return LazyTensor(weight.shape, "float32", lambda: weight.read().astype(np.float32) * factor, weight.release)
