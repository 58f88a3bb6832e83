"""Lazy tensors, read on access, so that a file larger than the memory can be converted."""

from __future__ import annotations

import dataclasses
import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from gm.checkpoints import narrow_floats
from gm.errors import UserError

_MAX_DIMENSIONS = 32  # of a NumPy array
_MAX_VALUES = 2**60


def _no_release() -> None:
    pass


def is_valid_shape(shape: tuple[int, ...]) -> bool:
    """Return whether an array, also an empty one, can have this shape; a damaged file may hold any numbers."""
    return len(shape) <= _MAX_DIMENSIONS and math.prod(max(n, 1) for n in shape) < _MAX_VALUES


@dataclass(frozen=True)
class LazyTensor:
    """Tensor of `shape`; `dtype` is NumPy's name of the type in the file.

    `read` returns the values, often a view of the file; "bfloat16" reads as float32, "float8_e4m3fn" and "float8_e5m2"
    read as float16, since NumPy lacks them. After `release` the file's pages no longer count as memory of this process;
    views stay valid unless they were written to.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    release: Callable[[], None] = _no_release

    @property
    def itemsize(self) -> int:
        """Bytes of a value in the file."""
        return np.dtype(narrow_floats.STORAGE.get(self.dtype, self.dtype)).itemsize

    @property
    def size(self) -> int:
        """Bytes of the tensor in the file."""
        return math.prod(self.shape) * self.itemsize


def in_memory(array: np.ndarray) -> LazyTensor:
    """Return `array` as a LazyTensor."""
    return LazyTensor(array.shape, array.dtype.name, lambda: array)


def reshaped(tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    """Return the same values in another `shape`."""
    return dataclasses.replace(tensor, shape=shape, read=lambda: tensor.read().reshape(shape))


def cast(tensor: LazyTensor, dtype: str, key: str) -> LazyTensor:
    """Return `tensor` as `dtype`; reading raises UserError as `cast_values` does."""
    return dataclasses.replace(tensor, dtype=dtype, read=lambda: cast_values(tensor.read(), dtype, key))


def cast_values(values: np.ndarray, dtype: str, key: str) -> np.ndarray:
    """Return `values` as `dtype`, without a copy if they have it; UserError naming `key` if finite values overflow."""
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        result = values.astype(dtype)
    if np.can_cast(values.dtype, dtype):  # a wider type cannot overflow
        return result
    if not np.isfinite(result).all() and (np.isinf(result) & np.isfinite(values)).any():
        largest = float(np.abs(values[np.isfinite(values)]).max())  # NumPy cannot format bfloat16
        raise UserError(f"{key} holds {largest:g}, too large for {dtype}; use float32")
    return result


class MappedFile:
    """Memory-mapped file: pages are read on access and can be released again."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            # Copy on write: writing to a tensor does not change the file.
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, shape: tuple[int, ...], dtype: str, spans: list[tuple[int, int]]) -> LazyTensor:
        """Return the tensor whose bytes are the concatenated `spans`, (start, end) each."""
        return LazyTensor(shape, dtype, partial(self._read, shape, dtype, spans), partial(self._release, spans))

    def _read(self, shape: tuple[int, ...], dtype: str, spans: list[tuple[int, int]]) -> np.ndarray:
        pieces = [np.frombuffer(self.data, np.uint8)[start:end] for start, end in spans]
        values = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        if dtype in narrow_floats.STORAGE:
            return narrow_floats.decode(values.view(narrow_floats.STORAGE[dtype]), dtype).reshape(shape)
        return values.view(dtype).reshape(shape)

    def _release(self, spans: list[tuple[int, int]]) -> None:
        if not hasattr(self.data, "madvise"):  # Windows
            return
        for start, end in spans:
            page = start - start % mmap.PAGESIZE  # a neighbor on the same page is read again on access
            if end > start:
                self.data.madvise(mmap.MADV_DONTNEED, page, end - page)
