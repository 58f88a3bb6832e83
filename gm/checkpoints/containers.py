"""Tensor files of any container format: read by content, written by suffix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gm.checkpoints import mindspore_format, safetensors_io, scaled_float8, torch_format
from gm.checkpoints.detect import detect_foreign_format
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.config import paths
from gm.errors import UserError

SUFFIXES = (".ckpt", ".safetensors")


@dataclass(frozen=True)
class TensorFile:
    """Contents of a file: tensors by key, and the strings stored beside them."""

    tensors: dict[str, LazyTensor]
    metadata: dict[str, str]


def read(path: str | Path) -> TensorFile:
    """Return the contents of a safetensors or MindSpore file, tensors as LazyTensors, with their scales applied.

    Raises UserError for a file that is missing, unreadable, of another kind (naming it), cut off or damaged, and as
    `scaled_float8.dequantize` does.
    """
    path = Path(path)
    paths.check_regular(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a .safetensors or .ckpt file")
    try:
        with path.open("rb") as file:
            header = file.read(64)
    except FileNotFoundError as error:
        raise UserError(f"{path} is not a file; give the path of a .safetensors or .ckpt file") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # the name of a shard in a damaged index may hold anything
        raise UserError(f"cannot read {str(path)!r}: no file can have such a name") from error
    if not header:
        raise UserError(f"{path} is empty; download or copy it again")
    if header[4:9] == b"\0\0\0\0{":  # length of a header of less than 4 GB, then its JSON
        return TensorFile(*scaled_float8.dequantize(path, *safetensors_io.read(path)))
    foreign = detect_foreign_format(header)
    if foreign:
        raise UserError(f"{path} seems to be {foreign}")
    return TensorFile(*mindspore_format.read(path))


def read_weights(path: str | Path) -> TensorFile:
    """Return the contents of a model's file: as `read`, and those of PyTorch's files as well.

    Raises UserError as `read` and `torch_format.read_weights` do.
    """
    if torch_format.is_torch_file(path):
        return TensorFile(*torch_format.read_weights(path))
    return read(path)


def _no_progress(size: int) -> None:
    pass


def write(
    path: str | Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str | int | float | bool] | None = None,
    progress: Callable[[int], None] = _no_progress,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write `tensors` to `path` atomically and one at a time, in the format of its suffix.

    In a `.ckpt`, `metadata` becomes entries like those of `append_dict`, in a `.safetensors` strings. `notes` are
    strings as well, which MindSpore does not see in a `.ckpt`. `progress` is called with the bytes of each tensor.
    Raises UserError for another suffix, and as `atomic_io.atomic_write` does.
    """
    path = Path(path)
    metadata = metadata or {}
    if path.suffix in (".safetensors", ".pti"):
        metadata = {**metadata, **(notes or {})}
        safetensors_io.write(path, tensors, {key: str(value) for key, value in metadata.items()}, progress)
    elif path.suffix == ".ckpt":
        mindspore_format.write(path, tensors, metadata, progress, notes)
    else:
        raise UserError(f"{path} must end in {' or '.join(SUFFIXES)}, which says what to write")
