"""The reader of every image file that users give: images to train on, to start from or to publish, and masks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gm.config import paths
from gm.data import image_colors
from gm.errors import UserError, shorten

log = logging.getLogger("gm")

# Pillow lists these among its formats, but needs another program to decode them or cannot decode them at all.
UNSUPPORTED_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
_STILL_FORMATS = {"MPO", "PSD"}  # further "frames" are depth maps and previews of a photo, and layers
_LOW_WHITE = 128  # a mask without a lighter pixel probably holds labels, such as 0 and 1


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An image file, upright and in 8 bits.

    rgb: mode RGB, sRGB, on white where it is transparent
    alpha: its opacity, mode L; None if it is opaque
    notes: what of the file is not used, as predicates: "has 2 frames; only the first is used"
    """

    rgb: Image.Image
    alpha: Image.Image | None
    notes: tuple[str, ...]


def image_suffixes() -> dict[str, str]:
    """Return the suffixes of image files, in lower case with the dot, each with Pillow's name of the format."""
    formats = Image.registered_extensions()
    return {suffix: name for suffix, name in formats.items() if name in Image.OPEN and name not in UNSUPPORTED_FORMATS}


@contextmanager
def open_image(path: Path, kind: str = "image") -> Iterator[Image.Image]:
    """Open the image file `path`, an image or a mask by its `kind`; it is not decoded yet, nor turned upright.

    Raises UserError if it cannot be read; also inside the `with` block, where Pillow may have to decode it.
    """
    paths.check_regular(path)
    try:
        # Not by its path: Pillow 12.3 would map an uncompressed TIFF into memory and mix up the rows of one that is
        # to be turned by a quarter.
        with path.open("rb") as stream, Image.open(stream, formats=sorted(set(image_suffixes().values()))) as file:
            yield file
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UserError(f"{path} has more than {limit} million pixels; make a smaller copy and use that") from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "cannot identify image file" if unknown else shorten(error) or type(error).__name__
        formats = "PNG" if kind == "mask" else "JPEG or PNG"
        raise UserError(
            f"cannot read the {kind} {path} ({reason}); save it again as {formats}, or remove it"
        ) from error


def read_image(path: Path) -> DecodedImage:
    """Return the image in the file `path`; what of it is not used is logged.

    Raises UserError if it cannot be read, or is fully transparent.
    """
    colors, alpha, notes = _decode(path, "image")
    if alpha is None:
        return DecodedImage(colors, None, notes)
    if not alpha.getbbox():
        raise UserError(
            f"{path} is fully transparent, so that nothing of it is seen; save it again opaque, or remove it"
        )
    return DecodedImage(_on_background(colors, alpha, "white"), alpha, notes)


def read_mask(path: Path) -> tuple[Image.Image, Image.Image | None]:
    """Return the mask in the file `path`, mode L and black where it is transparent, and its opacity, None if opaque.

    A white mask whose alpha channel holds the shape is that shape, then. Raises UserError if it cannot be read.
    """
    colors, alpha, _ = _decode(path, "mask")
    mask = (colors if alpha is None else _on_background(colors, alpha, "black")).convert("L")
    lightest = int(np.asarray(mask).max())
    if 0 < lightest < _LOW_WHITE:
        log.warning("the lightest pixel of the mask %s is %d of 255; white, 255, counts in full", path, lightest)
    return mask, alpha


def _decode(path: Path, kind: str) -> tuple[Image.Image, Image.Image | None, tuple[str, ...]]:
    """Return the colors of a file as upright sRGB, its opacity, None if it is opaque, and its unused content."""
    with open_image(path, kind) as file:
        file.load()
        image, notes = _turn_upright(file)
        notes += _unused_frames(file)
        image = image_colors.to_8_bit(image, file)
        profile = image.info.get("icc_profile")
        notes += [] if profile else image_colors.unused_color_space(image)
        colors, alpha = image_colors.split_alpha(image)
        colors, color_notes = image_colors.to_srgb(colors, profile)
        notes += color_notes
    for note in notes:
        log.warning("%s %s", path, note)
    return colors, alpha, tuple(notes)


def _turn_upright(file: Image.Image) -> tuple[Image.Image, list[str]]:
    try:
        return ImageOps.exif_transpose(file), []
    except Exception:  # damaged EXIF data make Pillow raise almost anything
        return file.copy(), ["has damaged EXIF data, by which it may have to be turned upright; they are not used"]


def _unused_frames(file: Image.Image) -> list[str]:
    if file.format in _STILL_FORMATS or not getattr(file, "is_animated", False):
        return []
    kind = "pages" if file.format == "TIFF" else "frames"
    return [f"has {getattr(file, 'n_frames', 2)} {kind}; only the first is used"]


def _on_background(colors: Image.Image, alpha: Image.Image, background: str) -> Image.Image:
    image = colors.copy()
    image.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
