"""One image: what its file shows, in red, green and blue, cut to a size."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from gm.data.bucketing import Size
from gm.errors import UserError, shorten

# Pillow lists these among its formats, but needs another program to draw them or cannot draw them at all.
NOT_DRAWN_BY_PILLOW = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}


@dataclass(frozen=True, eq=False)
class CroppedImage:
    """One image, resized to cover H × W, a square or a bucket, and cut to that in its middle.

    name: file name, without the folder
    pixels: float32 [3, H, W], red green blue, -1 (black) to 1 (white)
    original: (height, width) in pixels of the upright image, before resizing
    crop: (top, left) corner of the cut, in pixels of the resized image, as SDXL's class input takes it
        (Podell et al., 2023, section 2.2)
    mask: float32 [H, W], 1 where the image is to be learned or drawn anew and 0 where not; None if all of it is
    """

    name: str
    pixels: np.ndarray
    original: tuple[int, int]
    crop: tuple[int, int]
    mask: np.ndarray | None = None

    @property
    def size(self) -> Size:
        """Height and width of `pixels`."""
        height, width = self.pixels.shape[1:]
        return height, width


def image_suffixes() -> dict[str, str]:
    """Return the file endings of images, lower case with the dot, each with Pillow's name of the format."""
    registered = Image.registered_extensions()
    return {e: f for e, f in registered.items() if f in Image.OPEN and f not in NOT_DRAWN_BY_PILLOW}


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Give the image in the file `path`, upright, in whatever colours it is stored.

    Raises UserError if it cannot be read, in the block, too, where Pillow may come to decode it.
    """
    try:
        with Image.open(path, formats=sorted(set(image_suffixes().values()))) as file:
            yield ImageOps.exif_transpose(file)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UserError(f"{path} has more than {limit} million pixels; make a smaller copy and use that") from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        reason = shorten(error) or type(error).__name__
        raise UserError(
            f"cannot read the image {path} ({reason}); save it again as JPEG or PNG, or remove it"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
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


def crop(image: Image.Image, mask: Image.Image | None, name: str, size: Size) -> CroppedImage:
    """Return the middle of `image` (RGB), resized to cover `size`; the same of its `mask`, grey, of any size."""
    original = (image.height, image.width)
    covering = _resized(original, size)
    pixels = np.asarray(_middle(image, covering, size, Image.Resampling.LANCZOS), np.float32) / 127.5 - 1
    kept = None
    if mask is not None:
        kept = np.asarray(_middle(mask, covering, size, Image.Resampling.BOX), np.float32) / 255
    return CroppedImage(name, np.ascontiguousarray(pixels.transpose(2, 0, 1)), original, _corner(covering, size), kept)


def was_upscaled(image: CroppedImage) -> bool:
    """Return whether `image` is larger than in its file."""
    return _resized(image.original, image.size)[0] > image.original[0]


def flip_horizontal(image: CroppedImage) -> CroppedImage:
    """Return `image` flipped left to right; its cut then starts where the right margin was."""
    _, width = _resized(image.original, image.size)
    top, left = image.crop
    pixels = np.ascontiguousarray(image.pixels[:, :, ::-1])
    mask = None if image.mask is None else np.ascontiguousarray(image.mask[:, ::-1])
    return replace(image, pixels=pixels, crop=(top, width - image.pixels.shape[2] - left), mask=mask)


def _standard_colours(image: Image.Image) -> Image.Image:
    """Return `image` in sRGB if it names another colour space, as images from phones do."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = "RGB" if image.mode == "CMYK" else image.mode
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return image  # a damaged profile, or one of another kind of image: the numbers are the best there is
    return converted or image


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return a grey image of 16-bit numbers in 8 bits; Pillow itself would cut everything above 255 to white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have more than 16 bits")
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _resized(original: Size, size: Size) -> Size:
    """Return (height, width) of the image once it just covers `size`, rounded to nearest."""
    if size[0] * original[1] >= size[1] * original[0]:
        return size[0], (original[1] * size[0] + original[0] // 2) // original[0]
    return (original[0] * size[1] + original[1] // 2) // original[1], size[1]


def _middle(image: Image.Image, covering: Size, size: Size, resampling: Image.Resampling) -> Image.Image:
    """Return the middle, of `size`, of what `image` is when resized to `covering`."""
    top, left = _corner(covering, size)
    # Only the cut is computed, which spares the memory of a very long image; the box is the cut in original pixels.
    y, x = image.height / covering[0], image.width / covering[1]
    box = (left * x, top * y, (left + size[1]) * x, (top + size[0]) * y)
    return image.resize((size[1], size[0]), resampling, box=box)


def _corner(covering: Size, size: Size) -> tuple[int, int]:
    return (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
