"""Image folders: the images of a concept, resized and cropped for training."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from gm.data import bucketing, captions, masks
from gm.data.bucketing import Size
from gm.data.image import CroppedImage, resize_and_crop, was_upscaled
from gm.data.image_reader import image_suffixes, read_image
from gm.errors import UserError

log = logging.getLogger("gm")


def load_images(
    data_path: str | Path,
    resolution: int,
    use_masks: bool = True,
    bucket_resolutions: Sequence[Size] | None = None,
    center_crop: bool = True,
    interpolation: str = "lanczos",
) -> list[CroppedImage]:
    """Return the images in the folder `data_path` as squares of `resolution` pixels, in the order of their names.

    With `bucket_resolutions`, each image gets the size of the bucket nearest to its aspect ratio instead. Hidden files
    are skipped; other files that are not images, captions or masks of these images are skipped with a warning. Without
    `use_masks` no image has a mask. `center_crop` and `interpolation` are as in `image.resize_and_crop`. Raises
    UserError for a folder that does not exist or has no image, and for an image
    or mask that cannot be read.
    """
    folder = _check_folder(data_path)
    paths, sidecars = image_files(folder), sidecar_files(folder)
    masks.warn_of_unused(folder, sidecars, paths)
    used = {*paths, *captions.caption_files(folder, paths)}
    files = [path for path in _visible(folder) if path not in used]
    ignored = _names(path for path in files if path not in sidecars)
    if ignored:
        log.warning("ignored in %s, not an image by its suffix: %s", folder, ignored)
    if not paths:
        contents = f" but {_names(files)}" if files else ""
        raise UserError(f"no image in {folder}{contents}; put 3 to 20 .jpg or .png files directly into it")
    masks_by_stem = masks.match(sidecars, paths) if use_masks else {}
    images = []
    for path in paths:
        image = read_image(path)
        mask = masks.load_mask(masks_by_stem.get(path.stem), image) if use_masks else None
        size = _size(image.rgb, resolution, bucket_resolutions)
        images.append(_crop(image.rgb, mask, path.name, size, center_crop, interpolation))
    small = ", ".join(image.name for image in images if was_upscaled(image))
    if small:
        log.warning("upscaled to %d pixels, larger originals would have more detail: %s", resolution, small)
    return images


def image_files(folder: Path) -> list[Path]:
    """Return the files in `folder` with the suffix of an image, without those of `sidecar_files`, ordered by name."""
    return [path for path in _files_of_images(folder) if not masks.is_sidecar(path)]


def sidecar_files(folder: Path) -> list[Path]:
    """Return the masks and conditioning images in `folder`, ordered by name."""
    return [path for path in _files_of_images(folder) if masks.is_sidecar(path)]


def _files_of_images(folder: Path) -> list[Path]:
    suffixes = image_suffixes()
    return [path for path in _visible(folder) if path.suffix.lower() in suffixes and not path.is_dir()]


def _visible(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(f"{path.name}/" if path.is_dir() else path.name for path in paths)


def _check_folder(data_path: str | Path) -> Path:
    if not str(data_path).strip():
        raise UserError("--data_path is empty; give the folder of training images")
    folder = Path(data_path)
    if not folder.is_dir():
        cause = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"--data_path {folder} {cause}; give the folder of training images")
    return folder


def _size(image: Image.Image, resolution: int, bucket_resolutions: Sequence[Size] | None) -> Size:
    if bucket_resolutions:
        return bucketing.select_bucket((image.height, image.width), bucket_resolutions)
    return (resolution, resolution)


def _crop(
    image: Image.Image, mask: Image.Image | None, name: str, size: Size, center_crop: bool, interpolation: str
) -> CroppedImage:
    cropped = resize_and_crop(image, mask, name, size, center_crop, interpolation)
    if cropped.mask is not None and not cropped.mask.any():
        raise UserError(f"the center crop of {name} is masked as a whole; crop the image around its unmasked part")
    return cropped
