"""Image folders: the images of a concept, resized and cropped for training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from gm.data import bucketing, captions, masks
from gm.data.bucketing import Size
from gm.data.image import CroppedImage, image_suffixes, open_image, resize_and_crop, to_rgb, was_upscaled
from gm.errors import UserError

log = logging.getLogger("gm")


def load_images(
    data_path: str | Path,
    resolution: int,
    use_masks: bool = True,
    bucket_resolutions: Sequence[Size] | None = None,
) -> list[CroppedImage]:
    """Return the images in the folder `data_path` as squares of `resolution` pixels, in the order of their names.

    With `bucket_resolutions`, each image gets the size of the bucket nearest to its aspect ratio instead. Hidden files
    are skipped; other files that are not images, masks or captions are skipped with a warning. Without `use_masks` no
    image has a mask. Raises UserError for a folder that does not exist or has no image, and for an image or mask that
    cannot be read.
    """
    folder = _check_folder(data_path)
    paths = image_files(folder)
    used = {*paths, *captions.caption_files(folder, paths), *map(masks.mask_path, paths)}
    ignored = ", ".join(
        f"{path.name}/" if path.is_dir() else path.name for path in _visible(folder) if path not in used
    )
    if ignored:
        log.warning("ignored in %s, not an image by its suffix: %s", folder, ignored)
    if not paths:
        contents = f" but {ignored}" if ignored else ""
        raise UserError(f"no image in {folder}{contents}; put 3 to 20 .jpg or .png files directly into it")
    images = [_load_image(path, resolution, use_masks, bucket_resolutions) for path in paths]
    small = ", ".join(image.name for image in images if was_upscaled(image))
    if small:
        log.warning("upscaled to %d pixels, larger originals would have more detail: %s", resolution, small)
    return images


def image_files(folder: Path) -> list[Path]:
    """Return the files in `folder` with the suffix of an image, without masks, in the order of their names."""
    suffixes = image_suffixes()
    files = [path for path in _visible(folder) if not path.is_dir()]
    return [path for path in files if path.suffix.lower() in suffixes and not masks.is_mask(path)]


def _visible(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)


def _check_folder(data_path: str | Path) -> Path:
    if not str(data_path).strip():
        raise UserError("--data_path is empty; give the folder of training images")
    folder = Path(data_path)
    if not folder.is_dir():
        cause = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"--data_path {folder} {cause}; give the folder of training images")
    return folder


def _load_image(
    path: Path, resolution: int, use_masks: bool, bucket_resolutions: Sequence[Size] | None
) -> CroppedImage:
    with open_image(path) as upright:
        image = to_rgb(upright)
        mask = masks.load_mask(path, upright) if use_masks else None
    size = (resolution, resolution)
    if bucket_resolutions:
        size = bucketing.select_bucket((image.height, image.width), bucket_resolutions)
    cropped = resize_and_crop(image, mask, path.name, size)
    if cropped.mask is not None and not cropped.mask.any():
        raise UserError(f"the center crop of {path.name} is masked as a whole; crop the image around its unmasked part")
    return cropped
