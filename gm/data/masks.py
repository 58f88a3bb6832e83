"""Masks: the part of an image to train on, from its alpha channel or a grayscale image beside it, `name.mask.png`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from gm.errors import UserError, shorten

SUFFIX = ".mask"  # of the stem


def is_mask(path: Path) -> bool:
    """Return whether `path` has the name of a mask."""
    return path.stem.endswith(SUFFIX)


def mask_path(image_path: Path) -> Path:
    """Return where the mask of an image would be."""
    return image_path.with_name(f"{image_path.stem}{SUFFIX}.png")


def load_mask(image_path: Path, image: Image.Image) -> Image.Image | None:
    """Return the mask of an image, grayscale and of the size of the upright `image`; white is trained on, black is not.

    The file beside it overrides the alpha channel; None if there is neither, or if the image is opaque or transparent
    as a whole. Raises UserError for a file that cannot be read, has another aspect ratio, or masks the whole image.
    """
    path = mask_path(image_path)
    if path.is_file():
        try:
            with Image.open(path) as file:
                mask = file.convert("L")
        except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
            reason = shorten(error) or type(error).__name__
            raise UserError(f"cannot read the mask {path} ({reason}); save it again as PNG, or remove it") from error
        if not same_aspect_ratio(mask, image):
            raise UserError(
                f"the mask {path} is {mask.width}×{mask.height}, its image {image.width}×{image.height}; "
                "give them the same aspect ratio"
            )
        mask = mask.resize(image.size, Image.Resampling.BOX)
        if not mask.getbbox():
            raise UserError(f"{path} masks the whole image, so that nothing is trained on; paint that part white")
    elif image.has_transparency_data:
        mask = image.convert("RGBA").getchannel("A")
    else:
        return None
    low, high = mask.getextrema()
    return None if low == 255 or high == 0 else mask


def same_aspect_ratio(mask: Image.Image, image: Image.Image) -> bool:
    """Return whether both have the same aspect ratio, up to the rounding of sides to whole pixels."""
    return abs(mask.width * image.height - mask.height * image.width) <= max(*mask.size, *image.size)


def downscale(masks: np.ndarray, reduction: int) -> np.ndarray:
    """Return the mean of masks [N, H, W] over the pixels of each latent, float32 [N, H/r, W/r]."""
    n, height, width = masks.shape
    cells = masks.reshape(n, height // reduction, reduction, width // reduction, reduction)
    return cells.mean((2, 4)).astype(np.float32)


def loss_weights(masks: np.ndarray, reduction: int, unmasked_weight: float) -> np.ndarray:
    """Return the weight of each latent in the loss, float32 [N, H/r, W/r] with mean 1, from masks [N, H, W].

    The ratio of the weight where the mask is 0 to that where it is 1 is `unmasked_weight`.
    """
    weights = unmasked_weight + (1.0 - unmasked_weight) * downscale(masks, reduction)
    return (weights / weights.mean((1, 2), keepdims=True)).astype(np.float32)
