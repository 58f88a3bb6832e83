"""Embeddings in images, as AUTOMATIC1111 saves and shares them.

A PNG has the embedding as Base64 of JSON in the text chunk `sd-ti-embedding`. PNG and lossless WebP also have it in
their pixels: two blocks, left and right of the image and a black column, hold the low and the high four bits of each
byte of zlib-compressed JSON in the low four bits of their RGB values, masked with a pseudorandom sequence
(modules/textual_inversion/image_embedding.py).
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gm.checkpoints.lazy_tensor import LazyTensor, in_memory
from gm.config import paths
from gm.errors import DamagedFileError, UserError, shorten

_TEXT_KEY = "sd-ti-embedding"
_TENSOR_KEY = "TORCHTENSOR"
_LOW_BITS = 0x0F
_MAX_PIXELS = 25_000_000  # of an image, which is decoded as a whole; the usual ones have 512×512 and the blocks
_MAX_JSON = 32 * 1024 * 1024  # bytes; 75 vectors have 2 MB
_SIGNATURES = ((0, b"\x89PNG"), (0, b"\xff\xd8\xff"), (8, b"WEBP"), (4, b"ftypavif"), (4, b"JXL "))


def is_image(path: Path) -> bool:
    """Return whether the file at `path` begins as an image does."""
    if paths.special_kind(path):
        return False  # opening a pipe would wait
    try:
        with path.open("rb") as file:
            header = file.read(16)
    except OSError:
        return False
    return any(header[offset:].startswith(signature) for offset, signature in _SIGNATURES)


def read(path: Path) -> dict[str, Any]:
    """Return the tree of the embedding in an image, with tensors as LazyTensors; UserError if there is none."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise DamagedFileError(f"{image.width}×{image.height} pixels, more than one with an embedding")
            image.load()
            text = getattr(image, "text", {}).get(_TEXT_KEY)
            data = base64.b64decode(text, validate=True) if text else _pixel_data(np.asarray(image.convert("RGB")))
            lossless = image.format == "PNG"
        tree = _to_tensors(json.loads(data)) if data else None
    except (OSError, ValueError, SyntaxError, RecursionError, zlib.error, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} is an image with a damaged embedding ({shorten(error)}); get the original file, or .safetensors"
        ) from error
    except DamagedFileError as error:
        raise UserError(f"{path} is an image that holds {error}: the file is damaged, or another program's") from error
    if not isinstance(tree, dict):
        reason = "" if lossless else "; only PNG and lossless WebP can hold one"
        raise UserError(f"{path} is an image without an embedding{reason}; give the embedding file")
    return tree


def _pixel_data(pixels: np.ndarray) -> bytes:
    """Return the JSON in the blocks of an RGB image [H, W, 3], b"" if it has none."""
    bright = (pixels > 0).all(axis=2)
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    if not len(rows):
        return b""
    low_bits = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & _LOW_BITS
    black = np.flatnonzero(low_bits.sum(axis=(0, 2), dtype=np.int64) == 0)
    if len(black) < 2:
        return b""
    low, high = low_bits[:, : black[0]], low_bits[:, black[-1] + 1 :]
    if low.shape != high.shape or not low.size:
        return b""
    low, high = _unmask(low), _unmask(high)
    decompressor = zlib.decompressobj()
    try:
        data = decompressor.decompress((high << 4 | low).tobytes(), _MAX_JSON)
    except zlib.error:
        return b""  # an image with black columns
    if not decompressor.eof:
        raise DamagedFileError("a block of pixels that does not end")
    return data


def _unmask(block: np.ndarray) -> np.ndarray:
    """Return the block without its mask, a linear congruential sequence from 0, modulo 255."""
    # The states x' = (a x + c) mod 2^32 from 0 are c (1 + a + a^2 + ...), in wrapping arithmetic.
    powers = np.full(block.size, 1664525, np.uint32)
    powers[0] = 1
    states = np.cumsum(np.cumprod(powers, dtype=np.uint32), dtype=np.uint32) * np.uint32(1013904223)
    mask = (states % 255).astype(np.uint8).reshape(block.shape)
    return block ^ (mask & _LOW_BITS)


def _to_tensors(value: Any) -> Any:
    """Return JSON with LazyTensors in the place of `{"TORCHTENSOR": lists of numbers}`."""
    if not isinstance(value, dict):
        return value
    if _TENSOR_KEY in value:
        return _tensor(value[_TENSOR_KEY])
    return {key: _to_tensors(item) for key, item in value.items()}


def _tensor(lists: Any) -> LazyTensor:
    try:
        array = np.array(lists, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise DamagedFileError("lists that are not embedding vectors") from error
    return in_memory(array)
