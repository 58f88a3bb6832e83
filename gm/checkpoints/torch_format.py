"""PyTorch's format (`.pt`, `.bin`, `.ckpt`), without PyTorch and without executing what is in it.

`read` is for small files, such as embeddings, and keeps them in memory; `read_weights` reads the tensors of a model on
access.

Since PyTorch 1.6 such a file is a zip archive of stored entries: `<any>/data.pkl`, and the bytes of each storage in
`<any>/data/<key>`. Before, it was a sequence of pickles (a magic number, a version, the machine's sizes, the value, the
keys of the storages), then for each key the number of values, 8 bytes, and the values (torch/serialization.py).
"""

from __future__ import annotations

import io
import logging
import mmap
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from gm.checkpoints import narrow_floats, safe_unpickler
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.checkpoints.safe_unpickler import STORAGE_DTYPES, Storage, TensorRecord, Unknown, UnsafePickleError
from gm.config import paths
from gm.errors import DamagedFileError, UserError, shorten
from gm.runtime import atomic_io

log = logging.getLogger("gm")

_MAX_FILE_SIZE = 256 * 1024 * 1024  # bytes of a file that may still be an embedding
_MAX_PICKLE_SIZE = 64 * 1024 * 1024  # bytes of the description of a model's tensors; SDXL's has 0.4 MB
_MAX_OPCODES = 2_000_000  # of that description; SDXL's has about 100,000
_MAX_VALUES = 100_000  # in dicts and lists, also nested ones; a model with its optimizer has some 10,000
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGE_TYPES = {dtype: storage for storage, dtype in STORAGE_DTYPES.items()}


def is_torch_file(path: str | Path) -> bool:
    """Return whether the file at `path` begins as PyTorch's files do."""
    if paths.special_kind(path):
        return False  # opening a pipe would wait
    try:
        with Path(path).open("rb") as file:
            header = file.read(9)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return False
    # The length with which a safetensors file begins may have any low bytes.
    is_safetensors = header[4:] == b"\0\0\0\0{"
    return not is_safetensors and header[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read(path: str | Path) -> Any:
    """Return the value in the PyTorch file at `path`: dicts, lists, strings, numbers, and tensors as LazyTensors.

    Raises UserError for a file that is missing, too large for an embedding, cut off or damaged, or asks for anything
    but plain values: nothing in it is executed. Reading a tensor raises it, too.
    """
    path = Path(path)
    with _errors_of(path, "embedding"):
        size = path.stat().st_size
        if size > _MAX_FILE_SIZE:
            raise UserError(f"{path} has {size // 2**20} MB, too much for an embedding; is it a whole model?")
        data = path.read_bytes()
        if data.startswith(b"PK"):
            return _read_zip(path, zipfile.ZipFile(io.BytesIO(data)), len(data), safe_unpickler.MAX_OPCODES)
        return _read_legacy(path, data, safe_unpickler.MAX_OPCODES)


def read_weights(path: str | Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Return the tensors of a model's PyTorch file, each read on access, and the strings and numbers beside them.

    A `state_dict` in it stands for the whole, as in the files of PyTorch Lightning, whose callbacks and optimizer
    states may be objects of any class: what else the file holds is left out and named in one line. Raises UserError as
    `read` does; of such objects only for those in the `state_dict`.
    """
    path = Path(path)
    with _errors_of(path, "model"):
        size = path.stat().st_size
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if data[:2] == b"PK":
            tree = _read_zip(path, zipfile.ZipFile(path), size, _MAX_OPCODES, skip_unknown=True)
        else:
            tree = _read_legacy(path, data, _MAX_OPCODES, skip_unknown=True)
        if isinstance(tree, Unknown):  # a whole module, as `torch.save(model)` writes
            raise UnsafePickleError(tree.name)
        if not isinstance(tree, dict):
            raise DamagedFileError("it holds no dict of tensors")
        beside = {str(key): str(value) for key, value in tree.items() if isinstance(value, str | int | float)}
        if isinstance(tree.get("state_dict"), dict):
            rest = [str(key) for key in tree if key != "state_dict" and str(key) not in beside]
            if rest:
                log.info("%s: not used: %s beside the weights", path, ", ".join(rest))
            tree = tree["state_dict"]
        for value in tree.values():
            if isinstance(value, Unknown):
                raise UnsafePickleError(value.name)
        return {str(key): value for key, value in tree.items() if isinstance(value, LazyTensor)}, beside


@contextmanager
def _errors_of(path: Path, kind: str) -> Iterator[None]:
    """Turn the errors of reading the file of an embedding or model into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except UnsafePickleError as error:
        raise UserError(
            f"{path} asks for {error}, which is not a tensor and could run a program: it is not read; "
            f"get the {kind} as .safetensors"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # bytes that are not a pickle make the standard library raise almost anything
        raise _damaged(path, error) from error


def write(path: str | Path, tree: Any) -> None:
    """Write dicts, strings, numbers and arrays to `path` as `torch.save` does, atomically."""
    arrays: list[np.ndarray] = []
    pickle = b"\x80\x02" + _pickle(tree, arrays) + b"."
    with atomic_io.atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        entries = {"data.pkl": pickle, "byteorder": b"little", "version": b"3\n"}
        entries |= {f"data/{key}": np.ascontiguousarray(values).tobytes() for key, values in enumerate(arrays)}
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)  # a constant date: equal trees, equal bytes


def _read_zip(path: Path, archive: zipfile.ZipFile, size: int, max_opcodes: int, skip_unknown: bool = False) -> Any:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise DamagedFileError("there is no data.pkl in it, or several")

    def read_entry(name: str) -> bytes:
        info = archive.getinfo(name)
        # PyTorch compresses nothing, and a stored entry cannot be larger than its file.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
            raise DamagedFileError(f"{name} is compressed")
        return archive.read(info)

    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and read_entry(f"{folder}byteorder") != b"little":
        raise UserError(f"{path} was written on a machine of another byte order; save it again on a usual one")
    if archive.getinfo(pickles[0]).file_size > _MAX_PICKLE_SIZE:
        raise DamagedFileError(f"{pickles[0]} is larger than any model needs")
    tree = safe_unpickler.load(io.BytesIO(read_entry(pickles[0])), max_opcodes, skip_unknown)
    return _to_lazy_tensors(tree, path, lambda storage: read_entry(f"{folder}data/{storage.key}"))


def _read_legacy(path: Path, data: bytes | mmap.mmap, max_opcodes: int, skip_unknown: bool = False) -> Any:
    stream = io.BytesIO(data) if isinstance(data, bytes) else cast(IO[bytes], data)
    if safe_unpickler.load(stream, max_opcodes) != _LEGACY_MAGIC:
        raise DamagedFileError("it does not begin as PyTorch's files do")
    storages: dict[str, Storage] = {}
    _, system, tree, keys = (safe_unpickler.load(stream, max_opcodes, skip_unknown, storages) for _ in range(4))
    if not isinstance(system, dict) or system.get("little_endian") is not True or not isinstance(keys, list):
        raise DamagedFileError("it was written on a machine of another byte order")
    slices = {}
    position = stream.tell()
    for key in keys:
        count = int.from_bytes(data[position : position + 8], "little")
        if key not in storages or count != storages[key].count:
            raise DamagedFileError(f"storage {key} is not as announced")
        end = position + 8 + count * _itemsize(storages[key].dtype)
        slices[key] = slice(position + 8, end)
        position = end
    return _to_lazy_tensors(tree, path, lambda storage: data[slices[storage.key]])


def _to_lazy_tensors(tree: Any, path: Path, read_storage: Callable[[Storage], bytes]) -> Any:
    """Return `tree` with its tensors as LazyTensors, whose bytes `read_storage` returns."""
    return _map_tensors(tree, lambda record: _lazy_tensor(record, path, read_storage))


def _map_tensors(tree: Any, function: Callable[[TensorRecord], Any]) -> Any:
    """Return the dicts and lists in `tree`, nested ones too, with `function` applied to every tensor.

    Other values are plain ones; what is none of these becomes None.
    """
    remaining = _MAX_VALUES  # a dict may contain itself, or another one many times

    def apply(value: Any) -> Any:
        nonlocal remaining
        remaining -= 1
        if remaining < 0:
            raise DamagedFileError("too many values")
        if isinstance(value, TensorRecord):
            return function(value)
        if isinstance(value, dict):
            return {key: apply(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [apply(item) for item in value]
        return value if isinstance(value, str | int | float | bool | Unknown) else None

    return apply(tree)


def _lazy_tensor(record: TensorRecord, path: Path, read_storage: Callable[[Storage], bytes]) -> LazyTensor:
    storage = record.storage
    itemsize = _itemsize(storage.dtype)
    last = record.offset + sum((n - 1) * stride for n, stride in zip(record.shape, record.strides, strict=True))
    count = 1
    for n in record.shape:
        count *= n
    if count > storage.count or (count and last >= storage.count):
        raise DamagedFileError("a tensor reaches beyond its storage")

    def read_values() -> np.ndarray:
        try:
            dtype = narrow_floats.STORAGE.get(storage.dtype, storage.dtype)
            values = np.frombuffer(read_storage(storage), dtype, storage.count)[record.offset :]
            strides = tuple(stride * itemsize for stride in record.strides)
            view = np.lib.stride_tricks.as_strided(values, record.shape, strides, writeable=False)
            return narrow_floats.decode(view, storage.dtype) if storage.dtype in narrow_floats.STORAGE else view.copy()
        except Exception as error:
            raise _damaged(path, error) from error

    return LazyTensor(record.shape, storage.dtype, read_values)


def _itemsize(dtype: str) -> int:
    return np.dtype(narrow_floats.STORAGE.get(dtype, dtype)).itemsize


def _damaged(path: Path, error: Exception) -> UserError:
    reason = shorten(error) or type(error).__name__
    return UserError(f"{path} is cut off or damaged ({reason}); download or copy it again")


def _pickle(value: Any, arrays: list[np.ndarray]) -> bytes:
    """Return the opcodes that make `value`, as `torch.save` writes them; appends its arrays to `arrays`."""
    if isinstance(value, bool) or value is None:
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        length = value.bit_length() // 8 + 1
        return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, tuple):
        return b"(" + b"".join(_pickle(item, arrays) for item in value) + b"t"
    if isinstance(value, np.ndarray):
        return _pickle_array(value, arrays)
    items = b"".join(_pickle(key, arrays) + _pickle(item, arrays) for key, item in value.items())
    return b"}(" + items + b"u"


def _pickle_array(array: np.ndarray, arrays: list[np.ndarray]) -> bytes:
    """Return the call of `_rebuild_tensor_v2` with a storage of its own."""
    key = str(len(arrays))
    arrays.append(array)
    type_ = b"ctorch\n" + _STORAGE_TYPES[array.dtype.name].encode() + b"\n"
    location = _pickle(key, []) + _pickle("cpu", []) + _pickle(array.size, [])
    storage = b"(" + _pickle("storage", []) + type_ + location + b"tQ"
    strides = tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides)
    shape = _pickle(0, []) + _pickle(array.shape, []) + _pickle(strides, [])
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + shape + hooks + b"tR"
