"""Color profiles (ICC.1, version 2.4), as small as color management accepts, for colors that are easy to foretell."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping

from PIL import ImageCms

_D50 = struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
_CURVE = bytes(range(256))  # identity


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """A color space whose first number is the green light and whose second is the red."""
    return srgb().replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")


def linear_gray() -> bytes:
    """A gray whose numbers are light: sRGB's 128 is its 55."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv" + struct.pack(">IIH", 0, 1, 256)})


def gray_cyan() -> bytes:
    """CMYK in which full cyan is L* = 50 without color, and any other ink is black."""
    grid = b""
    for inks in itertools.product((0, 1), repeat=4):
        lightness = {(0, 0, 0, 0): 255, (1, 0, 0, 0): 128}.get(inks, 0)
        grid += bytes((lightness, 128, 128))
    identity = struct.pack(">9I", *(0x10000 if k % 4 == 0 else 0 for k in range(9)))
    table = b"mft1" + bytes((0, 0, 0, 0, 4, 3, 2, 0)) + identity + _CURVE * 4 + grid + _CURVE * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def _profile(device_class: bytes, space: bytes, connection_space: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    tags = {b"desc": b"desc" + struct.pack(">II", 0, 1) + bytes(79), b"wtpt": b"XYZ " + bytes(4) + _D50, **tags}
    table, data = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(">II", start + len(data), 0) + b"\2\x40\0\0" + device_class + space + connection_space
    header += bytes(12) + b"acsp" + bytes(28) + _D50
    return header.ljust(128, b"\0") + table + data
