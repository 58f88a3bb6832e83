"""MindSpore's `.ckpt` format, read and written tensor by tensor.

The format consists of the messages in mindspore/train/checkpoint_pb2.py:

    Checkpoint  { repeated Value value = 1; }
    Value       { string tag = 1; TensorProto tensor = 2; }
    TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3; }

with the conventions of mindspore/train/serialization.py: a large tensor is spread over consecutive Values of one tag,
each with the dims of the whole; a scalar has no dims, in older files dims [0]; a string is UTF-32 of type "str" with
dims [0]; a checksum may follow the message.

Programs that load a checkpoint may take every entry for a parameter. What is not for them is in a field that the
messages do not define, which protobuf skips: `Checkpoint { bytes notes = 15; }`, JSON of strings by key.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from gm.checkpoints import protobuf_wire
from gm.checkpoints.lazy_tensor import LazyTensor, MappedFile, is_valid_shape
from gm.checkpoints.protobuf_wire import Span, encode_bytes, encode_integer, encode_length
from gm.errors import DamagedFileError, UserError, shorten
from gm.runtime import atomic_io

_VALUE, _NOTES = 1, 15  # field numbers
_TAG, _TENSOR = 1, 2
_DIMS, _TYPE, _CONTENT = 1, 2, 3
_NUMPY_DTYPES = {
    **{f"{sign}Int{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
    **{f"Float{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BFloat16": "bfloat16",
    "Bool": "bool",
}
_MINDSPORE_TYPES = {numpy: mindspore for mindspore, numpy in _NUMPY_DTYPES.items()}
_CHECKSUM = b"crc_num"
_CHECKSUM_LENGTH = len(_CHECKSUM) + 10
_MAX_VALUES = 100_000  # in a file; SDXL's has 2,514
_MAX_FIELDS = 64  # in each message inside
_SLICE_SIZE = 512 * 1024 * 1024  # most bytes of a Value, as MindSpore writes them

Entry = tuple[str, tuple[int, ...], str, list[Span]]  # tag, dims, type, spans of the content


def read(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Return the tensors by key, in the order of the file, and the appended strings and notes.

    Raises UserError for a file that is cut off or damaged, and for a tensor of an unsupported type.
    """
    try:
        return _parse(path, MappedFile(path))
    except DamagedFileError as error:
        raise UserError(
            f"{path} is not a complete MindSpore checkpoint ({shorten(error)}); download or copy it again"
        ) from error


def write(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    appended: Mapping[str, str | int | float | bool],
    progress: Callable[[int], None],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write `tensors` one at a time, then `appended` as `mindspore.save_checkpoint` writes its `append_dict`.

    MindSpore does not see the `notes`. `progress` is called with the bytes of each tensor.
    """
    with atomic_io.atomic_write(path) as temporary, temporary.open("wb") as file:
        for key, tensor in tensors.items():
            values = tensor.read()
            assert (values.shape, values.dtype) == (tensor.shape, tensor.dtype), f"{key} is not as announced"
            file.writelines(_encode_tensor(key, values.shape, _MINDSPORE_TYPES[tensor.dtype], values.tobytes()))
            tensor.release()
            progress(tensor.size)
        for key, value in appended.items():
            file.writelines(_encode_appended(key, value))
        if notes:
            file.write(encode_bytes(_NOTES, json.dumps(dict(notes), ensure_ascii=False).encode()))


def _parse(path: Path, file: MappedFile) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    end = len(file.data)
    if file.data[-_CHECKSUM_LENGTH:].startswith(_CHECKSUM):
        end -= _CHECKSUM_LENGTH
    tensors: dict[str, LazyTensor] = {}
    strings: dict[str, str] = {}
    for key, dims, type_, spans in _read_entries(file.data, end, strings):
        if key in tensors or key in strings:
            raise DamagedFileError(f"{key!r} occurs twice")
        if type_ == "str":
            strings[key] = _decode_string(b"".join(file.data[slice(*span)] for span in spans), key)
            continue
        if type_ not in _NUMPY_DTYPES:
            reason = f"{shorten(repr(key))} has type {shorten(repr(type_))}"
            raise UserError(f"{path}: {reason}, which is not supported; use a float16 file")
        size = sum(end - start for start, end in spans)
        shape = () if dims == (0,) and size else dims
        if not is_valid_shape(shape):
            raise DamagedFileError(f"no tensor can have the shape of {key!r}")
        tensors[key] = file.tensor(shape, _NUMPY_DTYPES[type_], spans)
        if tensors[key].size != size:
            raise DamagedFileError(f"{key!r} has {size} bytes where its shape {shape} needs {tensors[key].size}")
    return tensors, strings


def _read_entries(data: mmap.mmap, end: int, notes: dict[str, str]) -> Iterator[Entry]:
    """Yield the entries, with consecutive Values of one tag as one, and put the notes into `notes`."""
    previous: Entry | None = None
    for number, span in protobuf_wire.read_fields(data, (0, end), _MAX_VALUES):
        if number == _NOTES and isinstance(span, tuple):
            notes |= _read_notes(data, span)
            continue
        if number != _VALUE or not isinstance(span, tuple):
            raise DamagedFileError(f"a field {number} in place of a tensor")
        entry = _read_entry(data, span)
        if previous is not None and previous[:3] == entry[:3]:
            previous[3].extend(entry[3])
            continue
        if previous is not None:
            yield previous
        previous = entry
    if previous is not None:
        yield previous


def _read_notes(data: mmap.mmap, span: Span) -> dict[str, str]:
    try:
        notes = json.loads(protobuf_wire.read_text(data, span))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"notes that are not JSON ({shorten(error)})") from error
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise DamagedFileError("notes that are not strings by key")
    return notes


def _read_entry(data: mmap.mmap, span: Span) -> Entry:
    """Return the entry of the Value in `span`."""
    value: dict[int, int | Span] = {}
    for number, content in protobuf_wire.read_fields(data, span, _MAX_FIELDS):
        if number in value:
            raise DamagedFileError("a tag or a tensor occurs twice")
        value[number] = content
    tag, tensor = value.get(_TAG), value.get(_TENSOR)
    if not isinstance(tag, tuple) or not isinstance(tensor, tuple):
        raise DamagedFileError("an entry without a tag or a tensor")
    dims: list[int] = []
    spans: dict[int, Span] = {}
    for number, content in protobuf_wire.read_fields(data, tensor, _MAX_FIELDS):
        if number == _DIMS:
            if isinstance(content, int):
                dims.append(content)
            else:
                dims += protobuf_wire.read_packed_integers(data, content, _MAX_FIELDS)
        elif isinstance(content, tuple):
            if number in spans:
                raise DamagedFileError("a type or a content occurs twice")
            spans[number] = content
    if _TYPE not in spans or _CONTENT not in spans:
        raise DamagedFileError("a tensor without type or content")
    if any(dim >= 1 << 63 for dim in dims):
        raise DamagedFileError("a negative size")
    type_ = protobuf_wire.read_text(data, spans[_TYPE])
    return protobuf_wire.read_text(data, tag), tuple(dims), type_, [spans[_CONTENT]]


def _decode_string(content: bytes, key: str) -> str:
    try:
        return content.decode("utf-32-le").rstrip("\0")  # an empty string is written as one NUL
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{key!r} is not a text") from error


def _encode_tensor(key: str, dims: tuple[int, ...], type_: str, content: bytes) -> Iterator[bytes | memoryview]:
    """Yield the bytes of the Values of one tensor, without copying its content."""
    tag = encode_bytes(_TAG, key.encode())
    header = b"".join(encode_integer(_DIMS, dim) for dim in dims) + encode_bytes(_TYPE, type_.encode())
    for start in range(0, max(len(content), 1), _SLICE_SIZE):
        part = memoryview(content)[start : start + _SLICE_SIZE]
        tensor = header + encode_length(_CONTENT, len(part))
        value = tag + encode_length(_TENSOR, len(tensor) + len(part)) + tensor
        yield encode_length(_VALUE, len(value) + len(part)) + value
        yield part


def _encode_appended(key: str, value: str | int | float | bool) -> Iterator[bytes | memoryview]:
    if isinstance(value, str):
        return _encode_tensor(key, (0,), "str", (value or "\0").encode("utf-32-le"))
    dtype = {bool: "bool", int: "int64", float: "float32"}[type(value)]
    return _encode_tensor(key, (), _MINDSPORE_TYPES[dtype], np.array(value, dtype).tobytes())
