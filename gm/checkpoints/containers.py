"""Files of tensors, whatever their format: read by what they hold, written by their ending."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gm.checkpoints import mindspore_format, safetensors_io
from gm.checkpoints.detect import foreign
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.errors import UserError

ENDINGS = (".ckpt", ".safetensors")


@dataclass(frozen=True)
class Contents:
    """The tensors of a file by name, and the strings stored beside them."""

    tensors: dict[str, LazyTensor]
    metadata: dict[str, str]


def read(path: str | Path) -> Contents:
    """Return what the safetensors or MindSpore file at `path` holds; a tensor's values are read when asked for.

    Raises UserError for a file that is not there, not readable, of another kind (saying which), cut off or damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a .safetensors or .ckpt file")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError as error:
        raise UserError(f"there is not a file {path}; give the path of a .safetensors or .ckpt file") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # as an index may ask for
        raise UserError(f"cannot read {str(path)!r}: no file can have such a name") from error
    if not start:
        raise UserError(f"{path} is empty; download or copy it again")
    if start[4:9] == b"\0\0\0\0{":  # a header of less than 4 GB, then its JSON
        return Contents(*safetensors_io.read(path))
    meaning = foreign(start)
    if meaning:
        raise UserError(f"{path} seems to be {meaning}")
    return Contents(*mindspore_format.read(path))


def write(
    path: str | Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str | int | float | bool] | None = None,
    progress: Callable[[int], None] = lambda size: None,
) -> None:
    """Write `tensors` to `path`, atomically and one at a time, as its ending asks for.

    In a `.ckpt`, `metadata` becomes entries as `append_dict` makes them, in a `.safetensors` strings. `progress` is
    told the bytes of each tensor written. Raises UserError for another ending and whatever `atomic.replacing` finds.
    """
    path = Path(path)
    metadata = metadata or {}
    if path.suffix in (".safetensors", ".pti"):
        safetensors_io.write(path, tensors, {name: str(value) for name, value in metadata.items()}, progress)
    elif path.suffix == ".ckpt":
        mindspore_format.write(path, tensors, metadata, progress)
    else:
        raise UserError(f"{path} must end in {' or '.join(ENDINGS)}, which says what to write")
