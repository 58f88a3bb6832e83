"""Colors of decoded images: every way to store a pixel, converted to 8 bits of sRGB or of opacity."""

from __future__ import annotations

import contextlib
import io

import numpy as np
from PIL import Image, ImageCms

_GRAY_MODES = {"1", "L", "LA"}
_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}
# Color modes by the color space of a profile, as named in ICC.1:2010, section 7.2.6.
_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF 6.0
_INTEROPERABILITY, _INTEROPERABILITY_INDEX, _ADOBE_RGB = 0xA005, 1, "R03"  # of Exif 2.3, and its value (DCF 2.0)
_SRGB_GAMMA = 1 / 2.2  # as in PNG's gAMA chunk


def to_8_bit(image: Image.Image, file: Image.Image) -> Image.Image:
    """Return a grayscale image of 16 bits or of floats from 0 to 1 in 8 bits; images of other modes as they are.

    Pillow's own conversion clips everything above 255, and its reader does not invert these where 0 is white in the
    TIFF. `file` is the opened file. Raises ValueError for values that have no certain white.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    tags = getattr(file, "tag_v2", {})
    values = np.asarray(image)
    transparent_value = image.info.get("transparency")
    opacity = None if transparent_value is None else np.where(values == transparent_value, 0, 255).astype(np.uint8)
    levels = _float_levels(values) if image.mode == "F" else _integer_levels(values, tags.get(_BITS_PER_SAMPLE, (16,)))
    gray = Image.fromarray(255 - levels if tags.get(_PHOTOMETRIC) == 0 else levels)
    if opacity is not None:
        gray.putalpha(Image.fromarray(opacity))
    gray.info |= {key: value for key, value in image.info.items() if key != "transparency"}
    return gray


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the colors of `image` as L, RGB, CMYK or LAB, and its opacity as L; None where it is opaque all over."""
    alpha = None
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in key)  # as Pillow reads the pixels of 16-bit PNGs
    is_gray = image.mode in _GRAY_MODES
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if is_gray:
        image = image.convert("L") if alpha is None else image.getchannel("R")
    elif image.mode not in ("CMYK", "LAB"):
        image = image.convert("RGB")
    return image, None if alpha is None or alpha.getextrema() == (255, 255) else alpha


def to_srgb(colors: Image.Image, profile: bytes | None) -> tuple[Image.Image, list[str]]:
    """Return the `colors` of `split_alpha` as sRGB by the ICC `profile`, and what of it could not be used."""
    if colors.mode == "LAB":  # has no profile, but a white: D50, as in profiles
        return _transform(colors, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))), []
    notes = []
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            mode = _PROFILE_MODES.get(source.profile.xcolor_space)
            if mode == colors.mode:
                return _transform(colors, source), []
            if (mode, colors.mode) == ("RGB", "L"):
                return _transform(colors.convert("RGB"), source), []
            space = source.profile.xcolor_space.strip()
            notes = [f"has a color profile for {space}, but its pixels are {colors.mode}; the profile is not used"]
        except (ImageCms.PyCMSError, OSError):
            notes = ["has a damaged color profile, which is not used"]
    elif colors.mode == "CMYK":
        notes = ["is CMYK without a color profile, so that its colors are approximate; save it as RGB for exact ones"]
    return colors.convert("RGB"), notes


def unused_color_space(image: Image.Image) -> list[str]:
    """Return what `image`, which has no profile, says of its color space in other ways, none of which is used."""
    info = image.info
    gamma = info.get("gamma")
    if gamma and "srgb" not in info and abs(gamma / _SRGB_GAMMA - 1) > 0.1:
        return [f"has a gamma of {gamma:.3g}, which is not used; its colors are read as sRGB"]
    with contextlib.suppress(Exception):  # damaged EXIF data make Pillow raise almost anything
        if image.getexif().get_ifd(_INTEROPERABILITY).get(_INTEROPERABILITY_INDEX) == _ADOBE_RGB:
            return ["is Adobe RGB by its EXIF data, but without a color profile; its colors are read as sRGB"]
    return []


def _transform(colors: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(colors, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # only a conversion in place returns None
    return converted


def _integer_levels(values: np.ndarray, bits_per_sample: tuple[int, ...]) -> np.ndarray:
    """Return integers, white at the highest that their bits can hold, as uint8."""
    values = values.astype(np.int64)
    bits = bits_per_sample[0]
    if bits > 16 or values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have more than 16 bits")
    white = 2**bits - 1
    return ((values * 255 + white // 2) // white).astype(np.uint8)


def _float_levels(values: np.ndarray) -> np.ndarray:
    """Return floats, white at 1 as in GIMP, scikit-image and OpenEXR, as uint8."""
    if not (values.min() >= 0 and values.max() <= 1):  # or not a number
        raise ValueError("its pixels are floating-point numbers that are not all from 0, black, to 1, white")
    return np.rint(values * 255).astype(np.uint8)
