"""Which part of an image is to be learned: its alpha channel, or a grey image beside it, `name.mask.png`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from gm.errors import UserError, shorten

SUFFIX = ".mask"  # of the stem


def is_mask(path: Path) -> bool:
    """Return whether `path` is named as a mask is."""
    return path.stem.endswith(SUFFIX)


def beside(image: Path) -> Path:
    """Return where the mask of `image` would be."""
    return image.with_name(f"{image.stem}{SUFFIX}.png")


def read(image_path: Path, image: Image.Image) -> Image.Image | None:
    """Return the mask of `image_path`, grey and of the size of its upright `image`; white is learned, black is not.

    The file beside it beats the alpha channel; None if there is neither, or all is opaque or transparent. Raises
    UserError for a file that is not readable, is of another shape, or leaves nothing to learn.
    """
    path = beside(image_path)
    if path.is_file():
        try:
            with Image.open(path) as file:
                mask = file.convert("L")
        except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
            reason = shorten(error) or type(error).__name__
            raise UserError(f"cannot read the mask {path} ({reason}); save it again as PNG, or remove it") from error
        if not same_shape(mask, image):
            raise UserError(
                f"the mask {path} is {mask.width}×{mask.height}, its image {image.width}×{image.height}; "
                "make them of one shape"
            )
        mask = mask.resize(image.size, Image.Resampling.BOX)
        if not mask.getbbox():
            raise UserError(f"{path} masks all of its image, so that nothing is left to learn; white is learned")
    elif image.has_transparency_data:
        mask = image.convert("RGBA").getchannel("A")
    else:
        return None
    low, high = mask.getextrema()
    return None if low == 255 or high == 0 else mask


def same_shape(mask: Image.Image, image: Image.Image) -> bool:
    """Return whether both have one ratio of width to height, but for the rounding of sides to whole pixels."""
    return abs(mask.width * image.height - mask.height * image.width) <= max(*mask.size, *image.size)


def areas(masks: np.ndarray, reduction: int) -> np.ndarray:
    """Return the mean of masks [N, H, W] over what becomes a latent, float32 [N, H/r, W/r]."""
    n, height, width = masks.shape
    cells = masks.reshape(n, height // reduction, reduction, width // reduction, reduction)
    return cells.mean((2, 4)).astype(np.float32)


def of_latents(masks: np.ndarray, reduction: int, unmasked_weight: float) -> np.ndarray:
    """Return how much each latent of an image counts, float32 [N, H/r, W/r] of mean 1, from masks [N, H, W] of 0 to 1.

    What is masked counts `unmasked_weight` of what is not.
    """
    weights = unmasked_weight + (1.0 - unmasked_weight) * areas(masks, reduction)
    return (weights / weights.mean((1, 2), keepdims=True)).astype(np.float32)
