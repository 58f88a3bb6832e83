"""Reading and writing `.safetensors`: 8 bytes of header length, a JSON header, the tensors' bytes.

The format is described at https://github.com/huggingface/safetensors. Its library checks a file's header here (that
tensors neither overlap nor leave gaps, and are as long as their shapes ask for), but the bytes are read through our own
map: its NumPy side has no bfloat16, and mapped pages should be released.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gm.checkpoints.lazy_tensor import LazyTensor, MappedFile, possible
from gm.errors import UserError, shorten
from gm.runtime import atomic_io

# In the order in which the library lays tensors out, last first, so that larger items stay aligned.
_NUMPY = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
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
_PUBLISHED = {numpy: ours for ours, numpy in _NUMPY.items()}
_ORDER = list(_PUBLISHED)
_LARGEST_HEADER = 16 * 1024 * 1024  # bytes; SDXL's has 0.3 MB, and one takes up to ten times as much when read


def read(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Return the tensors by name and the metadata; UserError for a damaged header, a short file, an unknown type."""
    file = MappedFile(path)
    length = int.from_bytes(file.data[:8], "little")
    try:
        if length > _LARGEST_HEADER:
            raise ValueError(f"its header has {length} bytes, more than any model needs")
        with safe_open(path, framework="np"):
            pass
        header = json.loads(file.data[8 : 8 + length], object_pairs_hook=_unique)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is cut off or damaged ({shorten(error)}); download or copy it again") from error
    metadata = header.pop("__metadata__", None) or {}
    tensors = {}
    for name, entry in header.items():
        # The library takes a list of the three values for an entry, and {type: null} for a type.
        if not isinstance(entry, dict) or not isinstance(entry["dtype"], str):
            what = f"{shorten(repr(name))} is not described as the format asks for"
            raise UserError(f"{path} is damaged: {what}; download or copy it again")
        if entry["dtype"] not in _NUMPY:
            kind = f"{shorten(repr(name))} has type {entry['dtype']}"
            raise UserError(f"{path}: {kind}, which is not read here; use a float16 file")
        if not possible(tuple(entry["shape"])):
            what = f"no tensor can have the shape of {shorten(repr(name))}"
            raise UserError(f"{path} is damaged: {what}; download or copy it again")
        start, end = entry["data_offsets"]
        span = (8 + length + start, 8 + length + end)
        tensors[name] = file.tensor(tuple(entry["shape"]), _NUMPY[entry["dtype"]], [span])
    return tensors, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a table of JSON; ValueError if it has a name twice, of which readers take the one or the other."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name is there twice")
    return table


def write(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    progress: Callable[[int], None],
) -> None:
    """Write `tensors` to `path`, one at a time; `progress` is told each one's bytes. The layout is the library's."""
    names = sorted(tensors, key=lambda name: (-_ORDER.index(tensors[name].dtype), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].size
        dtype = _PUBLISHED[tensors[name].dtype]
        header[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_io.atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            values = tensors[name].read()
            assert (values.shape, values.dtype) == (tensors[name].shape, tensors[name].dtype), f"{name} is another"
            file.write(values.tobytes())
            tensors[name].release()
            progress(tensors[name].size)
