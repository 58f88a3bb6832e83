"""Tensors that are read when they are asked for, so that a file larger than the memory can pass through."""

from __future__ import annotations

import dataclasses
import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from gm.errors import UserError

_MOST_DIMENSIONS, _MOST_VALUES = 32, 2**60  # that NumPy addresses


def _nothing() -> None:
    """What there is to release of a tensor that lies in memory."""


def possible(shape: tuple[int, ...]) -> bool:
    """Return whether an array can have this shape, be it empty or not; a damaged file may say anything."""
    return len(shape) <= _MOST_DIMENSIONS and math.prod(max(n, 1) for n in shape) < _MOST_VALUES


@dataclass(frozen=True)
class LazyTensor:
    """A tensor of `shape`; `dtype` is NumPy's name of what the file holds.

    `read` returns the values, often a view of the file; "bfloat16", which NumPy has not, reads as float32. After
    `release` the file's pages count no longer as this process's memory; views stay valid, unless they were written to.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    release: Callable[[], None] = _nothing

    @property
    def itemsize(self) -> int:
        """Bytes a value in the file."""
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.itemsize


def in_memory(array: np.ndarray) -> LazyTensor:
    """Return `array` as a LazyTensor."""
    return LazyTensor(array.shape, array.dtype.name, lambda: array)


def reshaped(tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    """Return the same values in another `shape` of as many."""
    return dataclasses.replace(tensor, shape=shape, read=lambda: tensor.read().reshape(shape))


def cast(tensor: LazyTensor, dtype: str, name: str) -> LazyTensor:
    """Return `tensor` with the values of `dtype`; reading raises UserError as `cast_values` does."""
    return dataclasses.replace(tensor, dtype=dtype, read=lambda: cast_values(tensor.read(), dtype, name))


def cast_values(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Return `values` as `dtype`, uncopied if they are; UserError naming the tensor if finite ones become infinite."""
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        result = values.astype(dtype)
    if np.can_cast(values.dtype, dtype):  # nothing is too large for a wider type
        return result
    if not np.isfinite(result).all() and (np.isinf(result) & np.isfinite(values)).any():
        largest = np.abs(values[np.isfinite(values)]).max()
        raise UserError(f"{name} holds {largest:g}, too large for {dtype}; use float32")
    return result


class MappedFile:
    """A file as an address range: parts are read when touched and can be released again."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            # Who writes to a value gets a page of his own, and the file stays as it is.
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, shape: tuple[int, ...], dtype: str, spans: list[tuple[int, int]]) -> LazyTensor:
        """Return the tensor whose bytes are those in `spans` of (start, end), one after the other."""
        return LazyTensor(shape, dtype, partial(self._read, shape, dtype, spans), partial(self._release, spans))

    def _read(self, shape: tuple[int, ...], dtype: str, spans: list[tuple[int, int]]) -> np.ndarray:
        pieces = [np.frombuffer(self.data, np.uint8)[start:end] for start, end in spans]
        values = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        if dtype == "bfloat16":  # the upper half of a float32
            return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        return values.view(dtype).reshape(shape)

    def _release(self, spans: list[tuple[int, int]]) -> None:
        if not hasattr(self.data, "madvise"):  # Windows
            return
        for start, end in spans:
            page = start - start % mmap.PAGESIZE  # what a neighbour has on it is read again when touched
            if end > start:
                self.data.madvise(mmap.MADV_DONTNEED, page, end - page)
