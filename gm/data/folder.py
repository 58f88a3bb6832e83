"""A folder of pictures, as the model wants them: upright, square, -1 to 1, with the sizes SDXL is told."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from gm.data import buckets, captions, masks
from gm.data.buckets import Size
from gm.errors import UserError

logger = logging.getLogger("gm")

# Pillow lists these among its formats, but needs another program to draw them or cannot draw them at all.
NOT_DRAWN_BY_PILLOW = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture, resized to cover H × W, a square or a bucket, and cut to that in its middle.

    name: file name within the folder
    pixels: float32 [3, H, W], red green blue, -1 (black) to 1 (white)
    original: (height, width) in pixels of the upright picture, before resizing
    crop: (top, left) corner of the cut, in pixels of the resized picture, as SDXL's class input takes it
        (Podell et al., 2023, section 2.2)
    mask: float32 [H, W], 1 where the picture is to be learned and 0 where not; None if all of it is
    """

    name: str
    pixels: np.ndarray
    original: tuple[int, int]
    crop: tuple[int, int]
    mask: np.ndarray | None = None


def read(
    data_path: str | Path, resolution: int, masked: bool = True, known: Sequence[Size] | None = None
) -> list[Picture]:
    """Return the pictures in the folder `data_path` at `resolution` pixels a side, in the order of their names.

    Each takes the shape of the nearest of the `known` sizes instead, if there are any.
    Hidden files are passed over, masks and captions belong to their pictures; what is no picture by its ending is
    passed over and named in the log. Without `masked` no picture has a mask. Raises UserError for a folder that is not
    there or has no picture, and for a picture or mask that cannot be read.
    """
    folder = _folder(data_path)
    formats = _endings()
    visible = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)
    paths = [p for p in visible if p.suffix.lower() in formats and not p.is_dir() and not masks.is_mask(p)]
    own = {*paths, *captions.files(folder, paths), *map(masks.beside, paths)}
    others = ", ".join(p.name + "/" * p.is_dir() for p in visible if p not in own)
    if others:
        logger.warning("ignored in %s, no picture by its ending: %s", folder, others)
    if not paths:
        found = f" but {others}" if others else ""
        raise UserError(f"no picture in {folder}{found}; put 3 to 20 .jpg or .png files right into it")
    pictures = [_read_picture(path, resolution, sorted(set(formats.values())), masked, known) for path in paths]
    small = ", ".join(p.name for p in pictures if _resized(p.original, _size(p))[0] > p.original[0])
    if small:
        logger.warning("enlarged to %d pixels, larger originals would show more: %s", resolution, small)
    return pictures


def mirrored(picture: Picture) -> Picture:
    """Return `picture` flipped left to right; its cut then starts where the right margin was."""
    _, width = _resized(picture.original, _size(picture))
    top, left = picture.crop
    pixels = np.ascontiguousarray(picture.pixels[:, :, ::-1])
    mask = None if picture.mask is None else np.ascontiguousarray(picture.mask[:, ::-1])
    return replace(picture, pixels=pixels, crop=(top, width - picture.pixels.shape[2] - left), mask=mask)


def _size(picture: Picture) -> Size:
    height, width = picture.pixels.shape[1:]
    return height, width


def _folder(data_path: str | Path) -> Path:
    if not str(data_path).strip():
        raise UserError("--data_path is empty; give the folder of pictures to learn from")
    folder = Path(data_path)
    if not folder.is_dir():
        cause = "is a file" if folder.exists() else "is not there"
        raise UserError(f"--data_path {folder} {cause}; give the folder of pictures to learn from")
    return folder


def _endings() -> dict[str, str]:
    """Return the file endings of pictures, lower case with the dot, each with Pillow's name of the format."""
    registered = Image.registered_extensions()
    return {e: f for e, f in registered.items() if f in Image.OPEN and f not in NOT_DRAWN_BY_PILLOW}


def _read_picture(
    path: Path, resolution: int, formats: list[str], masked: bool, known: Sequence[Size] | None
) -> Picture:
    try:
        with Image.open(path, formats=formats) as file:
            upright = ImageOps.exif_transpose(file)
            image, mask = _rgb(upright), masks.read(path, upright) if masked else None
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UserError(f"{path} has more than {limit} million pixels; make a smaller copy and use that") from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"cannot read the picture {path} ({reason}); save it again as JPEG or PNG, or remove it"
        ) from error
    size = buckets.nearest((image.height, image.width), known) if known else (resolution, resolution)
    return _cut(image, mask, path.name, size)


def _rgb(image: Image.Image) -> Image.Image:
    """Return `image` as RGB, what is transparent in it on white."""
    image = _standard_colours(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")  # black and white could be anywhere
    if image.mode.startswith("I"):
        image = _eight_bit(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _standard_colours(image: Image.Image) -> Image.Image:
    """Return `image` in sRGB if it names another colour space, as pictures from phones do."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = "RGB" if image.mode == "CMYK" else image.mode
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return image  # a damaged profile, or one of another kind of picture: the numbers are the best there is
    return converted or image


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return a grey picture of 16-bit numbers in 8 bits; Pillow itself would cut everything above 255 to white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have more than 16 bits")
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _cut(image: Image.Image, mask: Image.Image | None, name: str, size: Size) -> Picture:
    original = (image.height, image.width)
    height, width = _resized(original, size)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    # Only the cut is computed, which spares the memory of a very long picture; the box is the cut in original pixels.
    y, x = image.height / height, image.width / width
    box = (left * x, top * y, (left + size[1]) * x, (top + size[0]) * y)
    made = image.resize((size[1], size[0]), Image.Resampling.LANCZOS, box=box)
    pixels = np.asarray(made, np.float32).transpose(2, 0, 1) / 127.5 - 1
    kept = None
    if mask is not None:
        kept = np.asarray(mask.resize((size[1], size[0]), Image.Resampling.BOX, box=box), np.float32) / 255
        if not kept.any():
            raise UserError(f"the cut in the middle of {name} is masked as a whole; cut the picture about what is not")
    return Picture(name, np.ascontiguousarray(pixels), original, (top, left), kept)


def _resized(original: Size, size: Size) -> Size:
    """Return (height, width) of the picture once it just covers `size`, rounded to nearest."""
    if size[0] * original[1] >= size[1] * original[0]:
        return size[0], (original[1] * size[0] + original[0] // 2) // original[0]
    return (original[0] * size[1] + original[1] // 2) // original[1], size[1]
