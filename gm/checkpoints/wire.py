"""Reading protobuf's wire format in place (https://protobuf.dev/programming-guides/encoding), and writing its pieces.

Protobuf's own parser needs a file twice in memory; this one only finds where things are. How many it may find is
bounded, since a damaged or malicious file holds up to one for every two bytes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # the wire types; the two of groups are obsolete
_NUMBERS = 2**29  # of fields, from 1
_MOST_BITS = 70  # of a variable-length integer: ten bytes of seven

Span = tuple[int, int]  # offsets of the first byte and behind the last


class Damaged(Exception):
    """The bytes are not such a message; the text says how."""


def fields(data: mmap.mmap, span: Span, most: int) -> Iterator[tuple[int, int | Span]]:
    """Yield (field number, value) of the message in `span`; bytes and texts are given by their span.

    Numbers of fixed length, which no message here has, are passed over. Raises Damaged for what is no message, and for
    more than `most` fields.
    """
    at, end = span
    count = 0
    while at < end:
        count += 1
        if count > most:
            raise Damaged(f"more than {most} parts at byte {at}")
        key, at = _integer(data, at, end)
        number, kind = key >> 3, key & 7
        if not 0 < number < _NUMBERS:
            raise Damaged(f"unreadable at byte {at}")
        if kind == _VARINT:
            value, at = _integer(data, at, end)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _integer(data, at, end)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise Damaged(f"unreadable at byte {at}")
        if length > end - at:
            raise Damaged(f"cut off: {length - (end - at)} bytes are missing")
        if kind == _BYTES:
            yield number, (at, at + length)
        at += length


def packed_integers(data: mmap.mmap, span: Span, most: int) -> list[int]:
    """Return the integers of a packed repeated field; raises Damaged for more than `most`."""
    numbers: list[int] = []
    at, end = span
    while at < end:
        if len(numbers) == most:
            raise Damaged(f"more than {most} numbers at byte {at}")
        number, at = _integer(data, at, end)
        numbers.append(number)
    return numbers


def text(data: mmap.mmap, span: Span) -> str:
    """Return the UTF-8 text in `span`."""
    try:
        return data[slice(*span)].decode()
    except UnicodeDecodeError as error:
        raise Damaged(f"unreadable at byte {span[0]}") from error


def encoded(number: int) -> bytes:
    """Return `number`, not negative, as a variable-length integer."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def integer_field(number: int, value: int) -> bytes:
    """Return a field that holds an integer."""
    return bytes((number << 3 | _VARINT,)) + encoded(value)


def bytes_head(number: int, length: int) -> bytes:
    """Return what stands before the `length` bytes of a field that holds bytes, a text or a message."""
    return bytes((number << 3 | _BYTES,)) + encoded(length)


def bytes_field(number: int, content: bytes) -> bytes:
    """Return a field that holds `content`."""
    return bytes_head(number, len(content)) + content


def _integer(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """Return the variable-length integer at `at` and the offset behind it."""
    number = 0
    for shift in range(0, _MOST_BITS, 7):
        if at >= end:
            raise Damaged("cut off inside a number")
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise Damaged(f"unreadable at byte {at}")
