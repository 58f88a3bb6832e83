"""Small PyTorch files (`.pt`, `.bin`) without PyTorch, and without running what is in them.

Since PyTorch 1.6 such a file is a zip archive of stored entries, `<any>/data.pkl` and the bytes of each storage in
`<any>/data/<key>`. Before, it was a row of pickles (a magic number, a version, the machine's sizes, the value, the
storages' keys), then for each key the number of its values, 8 bytes, and the values (torch/serialization.py).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gm.checkpoints import safe_unpickler
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.checkpoints.safe_unpickler import Damaged, Noted, Refused, Storage
from gm.errors import UserError, shorten
from gm.runtime import atomic_io

_LARGEST = 256 * 1024 * 1024  # bytes of a file that may still hold a learned word
_MOST_VALUES = 10_000  # in dicts, and in dicts in these
_MAGIC = 0x1950A86A20F9469CFC6C


def is_one(path: str | Path) -> bool:
    """Whether the file at `path` begins as PyTorch's do."""
    try:
        with Path(path).open("rb") as file:
            return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    except OSError:
        return False


def read(path: str | Path) -> Any:
    """Return what the PyTorch file at `path` holds: dicts, lists, words, numbers, and tensors as LazyTensors.

    Raises UserError for a file that is not there, is too large for a learned word, is cut off or damaged, or asks for
    anything that is no plain value: what is in it is never run. A tensor's reading raises it, too.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise UserError(f"{path} has {size // 2**20} MB, too much for a learned word; is it a whole model?")
        data = path.read_bytes()
        return _archive(path, data) if data.startswith(b"PK") else _row(path, data)
    except UserError:
        raise
    except Refused as error:
        raise UserError(
            f"{path} asks for {error}, which is no tensor and could run a program: it is not read; "
            "get the concept as .safetensors"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # bytes that are no pickle make the standard library raise almost anything
        raise _damaged(path, error) from error


def write(path: str | Path, tree: Any) -> None:
    """Write dicts, words, numbers and arrays to `path` as `torch.save` does, whole or not at all."""
    tensors: list[np.ndarray] = []
    content = safe_unpickler.written(tree, tensors)
    with atomic_io.atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        entries = {"data.pkl": content, "byteorder": b"little", "version": b"3\n"}
        entries |= {f"data/{key}": np.ascontiguousarray(values).tobytes() for key, values in enumerate(tensors)}
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)  # with the same date always


def _archive(path: Path, data: bytes) -> Any:
    archive = zipfile.ZipFile(io.BytesIO(data))
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise Damaged("there is no data.pkl in it, or several")

    def entry(name: str) -> bytes:
        info = archive.getinfo(name)
        # PyTorch compresses nothing, and what is stored cannot be larger than its file.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
            raise Damaged(f"{name} is compressed")
        return archive.read(info)

    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and entry(f"{folder}byteorder") != b"little":
        raise UserError(f"{path} was written on a machine of another byte order; save it again on a usual one")
    made = safe_unpickler.value(io.BytesIO(entry(pickles[0])))
    return _filled(made, path, lambda storage: entry(f"{folder}data/{storage.key}"))


def _row(path: Path, data: bytes) -> Any:
    stream = io.BytesIO(data)
    if safe_unpickler.value(stream) != _MAGIC:
        raise Damaged("it does not begin as PyTorch's files do")
    _, system, made, keys = (safe_unpickler.value(stream) for _ in range(4))
    if not isinstance(system, dict) or system.get("little_endian") is not True or not isinstance(keys, list):
        raise Damaged("it was written on a machine of another byte order")
    storages: dict[str, Storage] = {}
    _each(made, lambda tensor: storages.update({tensor.storage.key: tensor.storage}))
    places, at = {}, stream.tell()
    for key in keys:
        count = int.from_bytes(data[at : at + 8], "little")
        if key not in storages or count != storages[key].count:
            raise Damaged(f"storage {key} is not what was announced")
        end = at + 8 + count * _itemsize(storages[key].dtype)
        places[key] = slice(at + 8, end)
        at = end
    return _filled(made, path, lambda storage: data[places[storage.key]])


def _filled(made: Any, path: Path, content: Callable[[Storage], bytes]) -> Any:
    """Return `made` with tensors whose values are read when asked for, from the bytes that `content` gives."""
    return _each(made, lambda tensor: _tensor(tensor, path, content))


def _each(made: Any, change: Callable[[Noted], Any]) -> Any:
    """Return the dicts in `made`, and in these, with `change` made to every tensor; other values are plain ones."""
    left = _MOST_VALUES  # a dict may hold itself, or another one many times

    def changed(value: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Damaged("too many values")
        if isinstance(value, Noted):
            return change(value)
        if isinstance(value, dict):
            return {key: changed(part) for key, part in value.items()}
        return value if isinstance(value, str | int | float | bool) else None

    return changed(made)


def _tensor(noted: Noted, path: Path, content: Callable[[Storage], bytes]) -> LazyTensor:
    storage, width = noted.storage, _itemsize(noted.storage.dtype)
    last = noted.place + sum((n - 1) * step for n, step in zip(noted.size, noted.strides, strict=True))
    count = 1
    for n in noted.size:
        count *= n
    if count > storage.count or (count and last >= storage.count):
        raise Damaged("a tensor reaches beyond its storage")

    def read_() -> np.ndarray:
        try:
            raw = "uint16" if storage.dtype == "bfloat16" else storage.dtype
            values = np.frombuffer(content(storage), raw, storage.count)[noted.place :]
            strides = tuple(step * width for step in noted.strides)
            found = np.lib.stride_tricks.as_strided(values, noted.size, strides, writeable=False)
            if storage.dtype == "bfloat16":  # the upper half of a float32
                return (found.astype(np.uint32) << 16).view(np.float32)
            return found.copy()
        except Exception as error:
            raise _damaged(path, error) from error

    return LazyTensor(noted.size, storage.dtype, read_)


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _damaged(path: Path, error: Exception) -> UserError:
    reason = shorten(error) or type(error).__name__
    return UserError(f"{path} is cut off or damaged ({reason}); download or copy it again")
