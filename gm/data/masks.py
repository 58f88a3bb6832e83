"""Masks: the part of an image to train on, from its alpha channel or from a grayscale image beside it.

The file is named `name.mask.png`, or `name-masklabel.png` as OneTrainer's are; other formats than PNG are taken, too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gm.data.image_reader import DecodedImage, open_image, read_mask
from gm.errors import UserError

log = logging.getLogger("gm")

ENDING = ".mask"  # of the stem
_MASK_ENDINGS = (ENDING, "-masklabel")  # the second is OneTrainer's
_CONDITIONING_ENDING = "-condlabel"  # of OneTrainer's conditioning images, which textual inversion has no use for
_LOOKS_LIKE_MASK = ("_mask", "-mask")  # where another image has the rest as its stem


def is_mask(path: Path) -> bool:
    """Return whether an image file has the name of a mask, whatever its case."""
    return path.stem.lower().endswith(_MASK_ENDINGS)


def is_sidecar(path: Path) -> bool:
    """Return whether an image file has the name of a mask or of a conditioning image, whatever its case."""
    return path.stem.lower().endswith((*_MASK_ENDINGS, _CONDITIONING_ENDING))


def image_stem(mask_path: Path) -> str:
    """Return the stem of the image that a mask belongs to."""
    stem = mask_path.stem
    ending = next(ending for ending in _MASK_ENDINGS if stem.lower().endswith(ending))
    return stem[: -len(ending)]


def match(sidecars: Sequence[Path], image_paths: Sequence[Path]) -> dict[str, Path]:
    """Return the masks among `sidecars` by the stems of their images; UserError for two masks of one image."""
    stems = {path.stem for path in image_paths}
    matched: dict[str, Path] = {}
    for path in filter(is_mask, sidecars):
        stem = image_stem(path)
        if stem in matched:
            raise UserError(f"{matched[stem]} and {path.name} are masks of the same image; remove one")
        if stem in stems:
            matched[stem] = path
    return matched


def warn_of_unused(folder: Path, sidecars: Sequence[Path], image_paths: Sequence[Path]) -> None:
    """Log which `sidecars` are masks without an image or conditioning images, and which images may be masks."""
    stems = {path.stem for path in image_paths}
    unused = [path.name for path in sidecars if is_mask(path) and image_stem(path) not in stems]
    if unused:
        log.warning("masks in %s without an image of the same name, not used: %s", folder, ", ".join(unused))
    conditioning = [path.name for path in sidecars if not is_mask(path)]
    if conditioning:
        log.warning("conditioning images of OneTrainer in %s, not used: %s", folder, ", ".join(conditioning))
    for path in image_paths:
        for ending in _LOOKS_LIKE_MASK:
            stem = path.stem[: -len(ending)]
            if path.stem.lower().endswith(ending) and stem in stems:
                name = f"{stem}{ENDING}{path.suffix}"
                log.warning("%s is used as an image; if it is the mask of %s, name it %s", path, stem, name)


def load_mask(mask_path: Path | None, image: DecodedImage) -> Image.Image | None:
    """Return the mask of an image, grayscale and of the size of `image`; white is trained on, black is not.

    The file overrides the alpha channel; None if there is neither, or if the mask is white all over. Raises UserError
    for a file that cannot be read, has another aspect ratio, or masks the whole image.
    """
    if mask_path is None:
        return image.alpha
    with open_image(mask_path, "mask") as file:
        if not may_fit(file, image.rgb):
            raise UserError(_misfit(mask_path, file, image.rgb))
    mask, alpha = read_mask(mask_path)
    if not same_aspect_ratio(mask, image.rgb):
        raise UserError(_misfit(mask_path, mask, image.rgb))
    mask = mask.resize(image.rgb.size, Image.Resampling.BOX)
    if not mask.getbbox():
        cause = "" if alpha is None else " (where it is transparent, it counts as black)"
        raise UserError(
            f"{mask_path} masks the whole image{cause}, so that nothing is trained on; paint that part white"
        )
    return None if mask.getextrema()[0] == 255 else mask


def same_aspect_ratio(mask: Image.Image, image: Image.Image) -> bool:
    """Return whether both have the same aspect ratio, up to the rounding of sides to whole pixels."""
    return abs(mask.width * image.height - mask.height * image.width) <= max(*mask.size, *image.size)


def may_fit(mask: Image.Image, image: Image.Image) -> bool:
    """Return whether a mask may have the aspect ratio of `image` where one is not decoded yet, nor turned upright."""
    turned = mask.height * image.height - mask.width * image.width
    return same_aspect_ratio(mask, image) or abs(turned) <= max(*mask.size, *image.size)


def _misfit(mask_path: Path, mask: Image.Image, image: Image.Image) -> str:
    return (
        f"the mask {mask_path} is {mask.width}×{mask.height}, its image {image.width}×{image.height}; "
        "give them the same aspect ratio"
    )


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
