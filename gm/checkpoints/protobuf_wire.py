"""Protobuf wire format: fields of a message read in place, and encoded.

https://protobuf.dev/programming-guides/encoding. Protobuf's own parser holds a file twice in memory; this one only
locates fields. Their number is bounded, because a damaged or malicious file can hold one for every two bytes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from gm.errors import DamagedFileError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types; the two of groups are obsolete
_MAX_FIELD_NUMBER = 2**29
_MAX_VARINT_BITS = 70  # ten bytes of seven

Span = tuple[int, int]  # offsets: start, end


def read_fields(data: mmap.mmap, span: Span, max_fields: int) -> Iterator[tuple[int, int | Span]]:
    """Yield (field number, value) of the message in `span`; the value of a length-delimited field is its span.

    Fixed-length fields are skipped: no message of a checkpoint has any. Raises DamagedFileError if the bytes are not a
    message, or have more than `max_fields`.
    """
    position, end = span
    count = 0
    while position < end:
        count += 1
        if count > max_fields:
            raise DamagedFileError(f"more than {max_fields} fields at byte {position}")
        key, position = _read_varint(data, position, end)
        number, wire_type = key >> 3, key & 7
        if not 0 < number < _MAX_FIELD_NUMBER:
            raise DamagedFileError(f"unreadable at byte {position}")
        if wire_type == _VARINT:
            value, position = _read_varint(data, position, end)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, position = _read_varint(data, position, end)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise DamagedFileError(f"unreadable at byte {position}")
        if length > end - position:
            raise DamagedFileError(f"cut off: {length - (end - position)} bytes are missing")
        if wire_type == _BYTES:
            yield number, (position, position + length)
        position += length


def read_packed_integers(data: mmap.mmap, span: Span, max_values: int) -> list[int]:
    """Return the integers of a packed repeated field; raises DamagedFileError for more than `max_values`."""
    values: list[int] = []
    position, end = span
    while position < end:
        if len(values) == max_values:
            raise DamagedFileError(f"more than {max_values} integers at byte {position}")
        value, position = _read_varint(data, position, end)
        values.append(value)
    return values


def read_text(data: mmap.mmap, span: Span) -> str:
    """Return the UTF-8 text in `span`."""
    try:
        return data[slice(*span)].decode()
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"unreadable at byte {span[0]}") from error


def encode_varint(value: int) -> bytes:
    """Return a non-negative integer as a varint."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def encode_integer(number: int, value: int) -> bytes:
    """Return field `number` with an integer."""
    return bytes((number << 3 | _VARINT,)) + encode_varint(value)


def encode_length(number: int, length: int) -> bytes:
    """Return the prefix of field `number` with `length` bytes: bytes, a string or a message."""
    return bytes((number << 3 | _BYTES,)) + encode_varint(length)


def encode_bytes(number: int, content: bytes) -> bytes:
    """Return field `number` with `content`."""
    return encode_length(number, len(content)) + content


def _read_varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """Return the varint at `position` and the offset of its end."""
    value = 0
    for shift in range(0, _MAX_VARINT_BITS, 7):
        if position >= end:
            raise DamagedFileError("cut off inside a number")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise DamagedFileError(f"unreadable at byte {position}")
