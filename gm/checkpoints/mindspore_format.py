"""Reading and writing MindSpore's `.ckpt`, tensor by tensor.

The format is that of the messages in mindspore/train/checkpoint_pb2.py:

    Checkpoint  { repeated Value value = 1; }
    Value       { string tag = 1; TensorProto tensor = 2; }
    TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3; }

and the conventions are those of mindspore/train/serialization.py: a large tensor is spread over Values of one tag that
follow one another, each with the dims of the whole; a scalar has no dims, or in older files dims [0]; a string is
UTF-32 of type "str" with dims [0]; a checksum may follow the message.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from gm.checkpoints import wire
from gm.checkpoints.lazy_tensor import LazyTensor, MappedFile, possible
from gm.checkpoints.wire import Damaged, Span
from gm.errors import UserError, shorten
from gm.runtime import atomic_io

_VALUE = 1
_TAG, _TENSOR = 1, 2
_DIMS, _TYPE, _CONTENT = 1, 2, 3
_NUMPY = {
    **{f"{sign}Int{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
    **{f"Float{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BFloat16": "bfloat16",
    "Bool": "bool",
}
_MINDSPORE = {numpy: ours for ours, numpy in _NUMPY.items()}
_CHECKSUM = b"crc_num"
_CHECKSUM_LENGTH = len(_CHECKSUM) + 10
_MOST_VALUES, _MOST_FIELDS = 100_000, 64  # in a file (SDXL's has 2,514), and in each of the messages inside
_SLICE = 512 * 1024 * 1024  # bytes that a Value holds at most, as MindSpore writes them

Entry = tuple[str, tuple[int, ...], str, list[Span]]  # tag, dims, type, where the content is


def read(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Return the tensors by name, in the file's order, and the strings that were appended.

    Raises UserError for a file that is cut off or damaged, and for a tensor of a type that is not read here.
    """
    try:
        return _parse(MappedFile(path))
    except Damaged as error:
        reason = shorten(error)
        raise UserError(f"{path} is no whole MindSpore checkpoint ({reason}); download or copy it again") from error


def write(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    appended: Mapping[str, str | int | float | bool],
    progress: Callable[[int], None],
) -> None:
    """Write `tensors`, one at a time, then `appended` as `mindspore.save_checkpoint` appends its `append_dict`.

    `progress` is told each tensor's bytes.
    """
    with atomic_io.atomic_write(path) as temporary, temporary.open("wb") as file:
        for name, tensor in tensors.items():
            values = tensor.read()
            assert (values.shape, values.dtype) == (tensor.shape, tensor.dtype), f"{name} is not what was announced"
            file.writelines(_pieces(name, values.shape, _MINDSPORE[tensor.dtype], values.tobytes()))
            tensor.release()
            progress(tensor.size)
        for name, value in appended.items():
            file.writelines(_appended(name, value))


def _parse(file: MappedFile) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    end = len(file.data)
    if file.data[-_CHECKSUM_LENGTH:].startswith(_CHECKSUM):
        end -= _CHECKSUM_LENGTH
    tensors: dict[str, LazyTensor] = {}
    strings: dict[str, str] = {}
    for name, dims, kind, spans in _joined(file.data, end):
        if name in tensors or name in strings:
            raise Damaged(f"{name!r} is there twice")
        if kind == "str":
            strings[name] = _string(b"".join(file.data[slice(*span)] for span in spans), name)
            continue
        if kind not in _NUMPY:
            raise Damaged(f"{name!r} has type {kind!r}, which is not read here")
        size = sum(end - start for start, end in spans)
        shape = () if dims == (0,) and size else dims
        if not possible(shape):
            raise Damaged(f"no tensor can have the shape of {name!r}")
        tensors[name] = file.tensor(shape, _NUMPY[kind], spans)
        if tensors[name].size != size:
            raise Damaged(f"{name!r} has {size} bytes where its shape {shape} asks for {tensors[name].size}")
    return tensors, strings


def _joined(data: mmap.mmap, end: int) -> Iterator[Entry]:
    """Yield the entries, Values of one tag that follow one another as one."""
    last: Entry | None = None
    for number, span in wire.fields(data, (0, end), _MOST_VALUES):
        if number != _VALUE or not isinstance(span, tuple):
            raise Damaged(f"a field {number} where a tensor should be")
        entry = _entry(data, span)
        if last is not None and last[:3] == entry[:3]:
            last[3].extend(entry[3])
            continue
        if last is not None:
            yield last
        last = entry
    if last is not None:
        yield last


def _entry(data: mmap.mmap, span: Span) -> Entry:
    """Return what the Value in `span` holds."""
    value: dict[int, int | Span] = {}
    for number, found in wire.fields(data, span, _MOST_FIELDS):
        if number in value:
            raise Damaged("a name or a tensor is there twice")
        value[number] = found
    tag, tensor = value.get(_TAG), value.get(_TENSOR)
    if not isinstance(tag, tuple) or not isinstance(tensor, tuple):
        raise Damaged("an entry without a name or a tensor")
    dims: list[int] = []
    spans: dict[int, Span] = {}
    for number, found in wire.fields(data, tensor, _MOST_FIELDS):
        if number == _DIMS:
            dims += [found] if isinstance(found, int) else wire.packed_integers(data, found, _MOST_FIELDS)
        elif isinstance(found, tuple):
            if number in spans:
                raise Damaged("a type or a content is there twice")
            spans[number] = found
    if _TYPE not in spans or _CONTENT not in spans:
        raise Damaged("a tensor without type or content")
    if any(dim >= 1 << 63 for dim in dims):
        raise Damaged("a negative size")
    return wire.text(data, tag), tuple(dims), wire.text(data, spans[_TYPE]), [spans[_CONTENT]]


def _string(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-32-le").rstrip("\0")  # an empty string is written as one NUL
    except UnicodeDecodeError as error:
        raise Damaged(f"{name!r} is no text") from error


def _pieces(name: str, dims: tuple[int, ...], kind: str, content: bytes) -> Iterator[bytes | memoryview]:
    """Yield the bytes of the Values that hold one tensor; the content is not copied."""
    tag = wire.bytes_field(_TAG, name.encode())
    shape = b"".join(wire.integer_field(_DIMS, dim) for dim in dims) + wire.bytes_field(_TYPE, kind.encode())
    for start in range(0, max(len(content), 1), _SLICE):
        part = memoryview(content)[start : start + _SLICE]
        tensor = shape + wire.bytes_head(_CONTENT, len(part))
        value = tag + wire.bytes_head(_TENSOR, len(tensor) + len(part)) + tensor
        yield wire.bytes_head(_VALUE, len(value) + len(part)) + value
        yield part


def _appended(name: str, value: str | int | float | bool) -> Iterator[bytes | memoryview]:
    if isinstance(value, str):
        return _pieces(name, (0,), "str", (value or "\0").encode("utf-32-le"))
    dtype = {bool: "bool", int: "int64", float: "float32"}[type(value)]
    return _pieces(name, (), _MINDSPORE[dtype], np.array(value, dtype).tobytes())
