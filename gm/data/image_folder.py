"""A folder of images, as the model wants them: upright, square, -1 to 1, with the sizes SDXL is told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from gm.data import bucketing, captions, masks
from gm.data.bucketing import Size
from gm.data.image import CroppedImage, crop, image_suffixes, open_image, to_rgb, was_upscaled
from gm.errors import UserError

logger = logging.getLogger("gm")


def read(
    data_path: str | Path, resolution: int, masked: bool = True, known: Sequence[Size] | None = None
) -> list[CroppedImage]:
    """Return the images in the folder `data_path` at `resolution` pixels a side, in the order of their names.

    Each takes the shape of the nearest of the `known` sizes instead, if there are any.
    Hidden files are passed over, masks and captions belong to their images; what is no image by its ending is
    passed over and named in the log. Without `masked` no image has a mask. Raises UserError for a folder that is not
    there or has no image, and for an image or mask that cannot be read.
    """
    folder = _folder(data_path)
    visible = _visible(folder)
    paths = image_files(folder)
    own = {*paths, *captions.files(folder, paths), *map(masks.beside, paths)}
    others = ", ".join(p.name + "/" * p.is_dir() for p in visible if p not in own)
    if others:
        logger.warning("ignored in %s, no image by its ending: %s", folder, others)
    if not paths:
        found = f" but {others}" if others else ""
        raise UserError(f"no image in {folder}{found}; put 3 to 20 .jpg or .png files right into it")
    images = [_read_image(path, resolution, masked, known) for path in paths]
    small = ", ".join(image.name for image in images if was_upscaled(image))
    if small:
        logger.warning("enlarged to %d pixels, larger originals would show more: %s", resolution, small)
    return images


def image_files(folder: Path) -> list[Path]:
    """Return the files in `folder` that are images by their ending, but no masks, in the order of their names."""
    known = image_suffixes()
    visible = _visible(folder)
    return [path for path in visible if path.suffix.lower() in known and not path.is_dir() and not masks.is_mask(path)]


def _visible(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)


def _folder(data_path: str | Path) -> Path:
    if not str(data_path).strip():
        raise UserError("--data_path is empty; give the folder of images to learn from")
    folder = Path(data_path)
    if not folder.is_dir():
        cause = "is a file" if folder.exists() else "is not there"
        raise UserError(f"--data_path {folder} {cause}; give the folder of images to learn from")
    return folder


def _read_image(path: Path, resolution: int, masked: bool, known: Sequence[Size] | None) -> CroppedImage:
    with open_image(path) as upright:
        image, mask = to_rgb(upright), masks.read(path, upright) if masked else None
    size = bucketing.nearest((image.height, image.width), known) if known else (resolution, resolution)
    cropped = crop(image, mask, path.name, size)
    if cropped.mask is not None and not cropped.mask.any():
        raise UserError(f"the cut in the middle of {path.name} is masked as a whole; cut the cropped about what is not")
    return cropped
