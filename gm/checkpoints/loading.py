"""Weights from any source into a model, or into a file of another format; strict, one tensor at a time."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from gm.checkpoints import containers, diffusers_format, key_mapping
from gm.checkpoints.detect import other_model
from gm.checkpoints.key_mapping import Layout
from gm.checkpoints.lazy_tensor import LazyTensor, cast, cast_values
from gm.config.model import ModelConfig
from gm.errors import UserError
from gm.models import sdxl

log = logging.getLogger("gm")

_SHOWN = 3  # names in a message
_NUMPY = {ms.float16: "float16", ms.float32: "float32", ms.float64: "float64"}


def open_weights(path: str | Path, layout: Layout, config: ModelConfig) -> dict[str, LazyTensor]:
    """Return the tensors of a file or diffusers folder by MindSpore's names, if in `layout`, else by their own.

    Raises UserError for what `containers.read` and `diffusers_folder.read` refuse.
    """
    path = Path(path)
    tensors = diffusers_format.read(path, config) if path.is_dir() else containers.read(path).tensors
    # A file with MindSpore's names passes through: those that differ from the published ones are no published names.
    ours = {key_mapping.published_name(name): name for name in layout}
    return {ours.get(name, name): tensor for name, tensor in tensors.items() if not name.endswith(key_mapping.UNUSED)}


def check(layout: Layout, tensors: Mapping[str, LazyTensor], source: str | Path, kind: str) -> None:
    """Raise UserError naming what is missing in `source`, what is unexpected and what has another shape.

    `kind` is that of the model whose layout it is: "base" or "refiner".
    """
    missing = [name for name in layout if name not in tensors]
    unexpected = [name for name in tensors if name not in layout]
    shaped = [
        f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in layout.items()
        if name in tensors and tensors[name].shape != shape
    ]
    findings = {"missing": missing, "unexpected": unexpected, "of another shape": shaped}
    if not any(findings.values()):
        return
    counts = "; ".join(f"{len(found)} {kind} ({_few(found)})" for kind, found in findings.items() if found)
    if 2 * (len(missing) + len(shaped)) < len(layout):
        hint = "it is incomplete or changed; take a fresh copy"
    else:
        meaning = other_model(tensors, kind)
        hint = f"it seems to be {meaning}" if meaning else "the config's model section describes another model"
    raise UserError(f"{source} does not fit the model of {len(layout)} tensors: {hint}; {counts}")


def load(model: nn.Cell, path: str | Path, config: ModelConfig, keep_half_above: float = math.inf) -> None:
    """Fill `model` from a file or folder of any kind, each parameter keeping its dtype.

    Except those of at least `keep_half_above` values that the file has in float16: the networks widen them.

    What lies in the file as the model wants it stays there, mapped: writing to the model does not change the file, but
    the file must not be written over while the model lives (replacing it, as this toolkit does, is no harm).
    Raises UserError as `open_weights` and `check` do, before anything is changed, and as `cast_values` does.
    """
    layout = key_mapping.layout(model)
    tensors = open_weights(path, layout, config)
    check(layout, tensors, path, config.kind)
    parameters = [parameter for parameter in model.get_parameters() if parameter.name in layout]
    for parameter in parameters:
        if tensors[parameter.name].dtype == "float16" and math.prod(parameter.shape) >= keep_half_above:
            parameter.set_dtype(ms.float16)
    widened_here = [p for p in parameters if tensors[p.name].dtype == "float16" and p.itemsize == 4]
    _warn_if_too_large(sum(p.itemsize * p.size for p in parameters), sum(2 * p.size for p in widened_here))
    # Casts take the time, and NumPy casts without Python's lock: one thread a core.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(lambda parameter: _fill(parameter, tensors[parameter.name]), parameters):
            pass


def convert(
    source: str | Path,
    target: str | Path,
    config: ModelConfig,
    dtype: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the weights at `source` as `dtype` to `target`, in the format of its ending.

    A `.ckpt` gets MindSpore's names and the network's order, a `.safetensors` the published ones. `progress` is told
    the bytes written and their total. Raises UserError as `open_weights`, `check`, `cast_values` and
    `containers.write` do; the target is written whole or not at all.
    """
    layout = key_mapping.layout(sdxl.build(config))
    tensors = open_weights(source, layout, config)
    check(layout, tensors, source, config.kind)
    to_published = Path(target).suffix == ".safetensors"
    out = {
        key_mapping.published_name(name) if to_published else name: cast(tensors[name], dtype, name) for name in layout
    }
    total, done = sum(tensor.size for tensor in out.values()), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    containers.write(target, out, {"format": "pt"} if to_published else None, count)


def _fill(parameter: Parameter, tensor: LazyTensor) -> None:
    values = tensor.read()
    if parameter.dtype == ms.bfloat16:  # NumPy has none
        parameter.set_data(Tensor(values, ms.bfloat16))
        return tensor.release()
    wanted = cast_values(values, _NUMPY[parameter.dtype], parameter.name)
    # Values that need no cast stay in the pages of their file, which all processes of a machine share.
    kept = np.require(wanted, requirements=("C_CONTIGUOUS", "ALIGNED", "WRITEABLE"))
    parameter.set_data(Tensor.from_numpy(kept))
    if not np.may_share_memory(kept, values):
        tensor.release()
    return None


def _warn_if_too_large(size: int, spare: int) -> None:
    """Say so before the system ends a process that takes more memory than there is, which it does without a word.

    `spare` are the bytes less if all weights stayed as narrow as in their file.
    """
    free = memory_available()
    if size > free:
        way = "--low_memory most keeps float16 weights half as large" if spare > 0.1 * size else "close other programs"
        log.warning("the weights take %.1f GB of memory, and %.1f GB are free: %s", size / 1e9, free / 1e9, way)


def memory_available() -> float:
    """Return the bytes that a process can still get without others being moved to the disk; infinite if not known."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), math.inf)


def _few(found: list[str]) -> str:
    return ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
