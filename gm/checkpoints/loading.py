"""Weights from any source into a model, or into a file of another format: strict, one tensor at a time."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from gm.checkpoints import containers, networks, reader
from gm.checkpoints.containers import TensorFile
from gm.checkpoints.detect import detect_other_model, model_kind
from gm.checkpoints.diffusers_format import Tensors
from gm.checkpoints.key_mapping import ParameterShapes, parameter_shapes, published_name
from gm.checkpoints.lazy_tensor import LazyTensor, cast, cast_values
from gm.checkpoints.misfit import Misfit
from gm.checkpoints.narrow_floats import FLOAT8
from gm.checkpoints.networks import WeightFiles
from gm.checkpoints.value_checks import check_finite, check_type, checked
from gm.checkpoints.weight_changes import NO_CHANGES, WeightChanges
from gm.config.model import ModelConfig
from gm.errors import UserError
from gm.models import heads, stable_diffusion

log = logging.getLogger("gm")

_HALF = ("float16", *FLOAT8)  # types in a file whose values float16 holds
_OTHER_SIZES = (
    "the config's model section describes another model; give a --config that describes this one: family, channels, "
    "depths and text encoders"
)
_NUMPY_DTYPES = {ms.float16: "float16", ms.float32: "float32", ms.float64: "float64"}


def check_tensors(shapes: ParameterShapes, tensors: Mapping[str, LazyTensor], source: str | Path, kind: str) -> None:
    """Raise UserError naming the missing, unexpected and misshapen tensors of `source`.

    `kind` is that of the model with these `shapes`, as `detect.model_kind` returns it.
    """
    misfit = Misfit.of(shapes, tensors)
    if not misfit:
        return
    if 2 * (len(misfit.missing) + len(misfit.mismatched)) < len(shapes):
        hint = misfit.explain(kind)
    else:
        other = detect_other_model(tensors, kind)
        hint = f"it seems to be {other}" if other else _OTHER_SIZES
    raise UserError(f"{source} does not fit the model of {len(shapes)} tensors: {hint}; {misfit.counts()}")


def open_files(
    files: WeightFiles, shapes: ParameterShapes, config: ModelConfig, unused: Mapping[str, object] | None = None
) -> TensorFile:
    """Return the tensors of `files` by the names in `shapes`, checked: all are there, of the right shape, and floats.

    The metadata are those of the checkpoint. Networks in `unused` are not in `shapes`, and are left out. Raises
    UserError as `reader.read`, `networks.read`, `networks.check_present` and `check_tensors` do.
    """
    without = {**files.networks, **(unused or {})}
    checkpoint = reader.read(Path(files.checkpoint), shapes, config, without)
    tensors = networks.without(checkpoint.tensors, without)
    for network, path in files.networks.items():
        tensors |= networks.read(network, path, shapes, config)
    networks.check_present(tensors, files, shapes, config)
    for name in shapes:
        if name in tensors:
            check_type(tensors[name], name, files.source(name))
    check_tensors(shapes, tensors, files.checkpoint, model_kind(config))
    return TensorFile(tensors, checkpoint.metadata)


def load_weights(
    model: nn.Cell,
    path: str | Path | WeightFiles,
    config: ModelConfig,
    keep_half_above: float = math.inf,
    unused: Mapping[str, object] | None = None,
    changes: WeightChanges = NO_CHANGES,
) -> None:
    """Load weights from files or a folder of any kind into `model`; each parameter keeps its dtype.

    Exceptions are parameters of at least `keep_half_above` values that the file has in float16 or float8: they are
    float16, and the networks cast them in use. Networks in `unused`, which the model lacks, may be in the file or not.
    `changes` are applied in float32 to the values of the file; the results are then rounded to the parameter's dtype.

    Values that the file holds in the dtype of the model stay memory-mapped: writing to the model does not change the
    file, but the file must not be written over while the model lives (replacing it, as this toolkit does, is safe).
    Raises UserError as `open_files` and `changes.check_source` do, before anything is changed, and as `check_finite`,
    `cast_values` and `changes.apply` do.
    """
    shapes = parameter_shapes(model)
    files = path if isinstance(path, WeightFiles) else WeightFiles(path)
    opened = open_files(files, shapes, config, unused)
    changes.check_source(str(files.checkpoint), opened.metadata)
    tensors = opened.tensors
    parameters = [parameter for parameter in model.get_parameters() if parameter.name in shapes]
    for parameter in parameters:
        wide = parameter.itemsize == 4  # bfloat16 weights are as narrow, and used as they are
        if wide and tensors[parameter.name].dtype in _HALF and math.prod(parameter.shape) >= keep_half_above:
            parameter.set_dtype(ms.float16)
    upcast = [p for p in parameters if tensors[p.name].dtype in _HALF and p.itemsize == 4]
    _warn_if_too_large(sum(p.itemsize * p.size for p in parameters), sum(2 * p.size for p in upcast))
    _log_rounding(parameters, changes)
    tensors = _changed(tensors, files, changes)

    def load(parameter: Parameter) -> None:
        _load_parameter(parameter, tensors[parameter.name], files.source(parameter.name))

    # Casts take most of the time, and NumPy releases Python's lock while casting: one thread per core.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(load, parameters):
            pass


def load_tensors(network: nn.Cell, tensors: Mapping[str, LazyTensor], source: str) -> None:
    """Load `network` from `tensors` of the file `source`, which has each parameter under its published name.

    Raises UserError for a tensor that is missing, left over or of another shape, and as `check_type` and
    `check_finite` do.
    """
    shapes = {published_name(name): shape for name, shape in parameter_shapes(network).items()}
    misfit = Misfit.of(shapes, tensors)
    if misfit:
        raise UserError(f"{source} does not fit its config.json, a network of {len(shapes)} tensors: {misfit.counts()}")
    for parameter in network.get_parameters():
        key = published_name(parameter.name)
        check_type(tensors[key], key, source)
        _load_parameter(parameter, checked(tensors[key], key, source), source)  # named as in the file


def _no_progress(done: int, total: int) -> None:
    pass


def convert(
    source: str | Path | WeightFiles,
    target: str | Path,
    config: ModelConfig,
    dtype: str,
    progress: Callable[[int, int], None] = _no_progress,
    prepare_changes: Callable[[ParameterShapes], WeightChanges] = lambda shapes: NO_CHANGES,
) -> None:
    """Write the weights at `source` as `dtype` to `target`, atomically and in the format of its suffix.

    A `.ckpt` gets MindSpore's names in the order of the network, a `.safetensors` the published keys; both get the
    metadata of the source and what it says elsewhere (`statements.carried_metadata`). `progress` is called with the
    bytes written and their total; `prepare_changes` returns the changes of the weights of a model. Raises UserError as
    `open_files`, `check_finite`, `cast_values`, `containers.write` and the changes do.
    """
    shapes = parameter_shapes(stable_diffusion.build(config))
    changes = prepare_changes(shapes)
    files = source if isinstance(source, WeightFiles) else WeightFiles(source)
    opened = open_files(files, shapes, config)
    changes.check_source(str(files.checkpoint), opened.metadata)
    to_published = Path(target).suffix == ".safetensors"
    tensors = _changed(opened.tensors, files, changes)
    finite = {name: checked(tensors[name], name, files.source(name)) for name in shapes}
    out = {published_name(name) if to_published else name: cast(finite[name], dtype, name) for name in shapes}
    total = sum(tensor.size for tensor in out.values())
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    metadata = {**opened.metadata, **changes.metadata(opened.metadata)}
    metadata |= {"format": "pt"} if to_published else {}
    containers.write(target, out, metadata, count)


def _changed(tensors: Tensors, files: WeightFiles, changes: WeightChanges) -> Tensors:
    """Return `tensors` with `changes` applied when they are read: those are float32."""

    def change(name: str, tensor: LazyTensor) -> LazyTensor:
        finite = checked(tensor, name, files.source(name))
        return dataclasses.replace(tensor, dtype="float32", read=lambda: changes.apply(name, finite.read()))

    return {name: change(name, tensor) if name in changes else tensor for name, tensor in tensors.items()}


def _log_rounding(parameters: Sequence[Parameter], changes: WeightChanges) -> None:
    """Log if weights with changes do not stay in float32."""
    rounded = [parameter for parameter in parameters if parameter.name in changes and parameter.itemsize < 4]
    if rounded:
        log.info("%d weights with LoRAs are summed in float32 and rounded to %s", len(rounded), rounded[0].dtype)


def _load_parameter(parameter: Parameter, tensor: LazyTensor, source: str) -> None:
    values = tensor.read()
    check_finite(values, parameter.name, source)
    values = heads.padded(parameter, values)
    if parameter.dtype == ms.bfloat16:  # NumPy lacks it
        parameter.set_data(Tensor(values, ms.bfloat16))
        tensor.release()
        return
    converted = cast_values(values, _NUMPY_DTYPES[parameter.dtype], parameter.name)
    # Values that need no cast stay in the pages of their file, which all processes of a machine share.
    data = np.require(converted, requirements=("C_CONTIGUOUS", "ALIGNED", "WRITEABLE"))
    parameter.set_data(Tensor.from_numpy(data))
    tensor.release()  # also of values that stay there: the check has read their pages, and nothing has written to them


def _warn_if_too_large(size: int, half_savings: int) -> None:
    """Warn if the weights exceed the free memory: the system kills such a process without a message.

    `half_savings` are the bytes saved if all weights stayed as narrow as in their file.
    """
    free = memory_available()
    if size > free:
        if half_savings > 0.1 * size:
            advice = "--low_memory most keeps float16 weights half as large"
        else:
            advice = "close other programs"
        log.warning("the weights take %.1f GB of memory, and %.1f GB are free: %s", size / 1e9, free / 1e9, advice)


def memory_available() -> float:
    """Return the bytes that a process can allocate before others are swapped out; infinite if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), math.inf)
