"""Safetensors format: 8 bytes of header length, a JSON header, the bytes of the tensors.

The format is described at https://github.com/huggingface/safetensors. The library validates the header (tensors neither
overlap nor leave gaps, and have the size of their shapes), but the bytes are read through our own memory map: the
library's NumPy interface lacks bfloat16 and cannot release pages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gm.checkpoints.lazy_tensor import LazyTensor, MappedFile, is_valid_shape
from gm.errors import UserError, shorten
from gm.runtime import atomic_io

# The library lays tensors out in the reverse of this order, so that larger items stay aligned.
_NUMPY_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
_SAFETENSORS_TYPES = {numpy: safetensors for safetensors, numpy in _NUMPY_DTYPES.items()}
_ORDER = list(_SAFETENSORS_TYPES)
_MAX_HEADER = 16 * 1024 * 1024  # bytes; SDXL's has 0.3 MB, and parsing takes up to ten times as much memory


def read(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Return the tensors by key and the metadata; UserError for a damaged header, a short file, an unknown type."""
    file = MappedFile(path)
    length = int.from_bytes(file.data[:8], "little")
    try:
        if length > _MAX_HEADER:
            raise ValueError(f"its header has {length} bytes, more than any model needs")
        with safe_open(path, framework="np"):
            pass
        header = json.loads(file.data[8 : 8 + length], object_pairs_hook=_check_unique_keys)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is cut off or damaged ({shorten(error)}); download or copy it again") from error
    metadata = header.pop("__metadata__", None) or {}
    tensors = {}
    for key, entry in header.items():
        # The library also accepts a list of the three values as an entry, and {type: null} as a type.
        if not isinstance(entry, dict) or not isinstance(entry["dtype"], str):
            reason = f"{shorten(repr(key))} is not described as the format requires"
            raise UserError(f"{path} is damaged: {reason}; download or copy it again")
        if entry["dtype"] not in _NUMPY_DTYPES:
            reason = f"{shorten(repr(key))} has type {entry['dtype']}"
            raise UserError(f"{path}: {reason}, which is not supported; use a float16 file")
        shape = tuple(entry["shape"])
        if not is_valid_shape(shape):
            reason = f"no tensor can have the shape of {shorten(repr(key))}"
            raise UserError(f"{path} is damaged: {reason}; download or copy it again")
        start, end = entry["data_offsets"]
        span = (8 + length + start, 8 + length + end)
        tensors[key] = file.tensor(shape, _NUMPY_DTYPES[entry["dtype"]], [span])
    return tensors, metadata


def _check_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; ValueError if a key occurs twice, because readers differ in which one they take."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key occurs twice")
    return mapping


def write(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    progress: Callable[[int], None],
) -> None:
    """Write `tensors` one at a time in the library's layout; `progress` is called with the bytes of each."""
    keys = sorted(tensors, key=lambda key: (-_ORDER.index(tensors[key].dtype), key))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for key in keys:
        start = end
        end += tensors[key].size
        dtype = _SAFETENSORS_TYPES[tensors[key].dtype]
        header[key] = {"dtype": dtype, "shape": list(tensors[key].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_io.atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in keys:
            values = tensors[key].read()
            assert (values.shape, values.dtype) == (tensors[key].shape, tensors[key].dtype), (
                f"{key} is not as announced"
            )
            file.write(values.tobytes())
            tensors[key].release()
            progress(tensors[key].size)
