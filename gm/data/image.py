"""Images as the networks take them: resizing, cropping and flipping."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from gm.data.bucketing import Size


@dataclass(frozen=True, eq=False)
class CroppedImage:
    """An image that was resized to cover H × W, a square or a bucket, and center-cropped to that, or squashed to it.

    name: file name, without the folder
    pixels: float32 [3, H, W], RGB, -1 (black) to 1 (white)
    original_size: (height, width) in pixels of the upright image, before resizing
    crop_top_left: (top, left) corner of the crop in pixels of the resized image, for SDXL's size conditioning
        (Podell et al., 2023, section 2.2)
    mask: float32 [H, W], 1 where the image is trained on or inpainted and 0 elsewhere; None is 1 everywhere
    squashed: it was resized to H × W whatever its shape, without a crop
    """

    name: str
    pixels: np.ndarray
    original_size: tuple[int, int]
    crop_top_left: tuple[int, int]
    mask: np.ndarray | None = None
    squashed: bool = False

    @property
    def size(self) -> Size:
        """Height and width of `pixels`."""
        height, width = self.pixels.shape[1:]
        return height, width


def resize_and_crop(
    image: Image.Image,
    mask: Image.Image | None,
    name: str,
    size: Size,
    center_crop: bool = True,
    interpolation: str = "lanczos",
) -> CroppedImage:
    """Return `image` (RGB), resized to cover `size` and center-cropped, with its `mask` (grayscale, of any size).

    Without `center_crop` it is resized to `size` itself. `interpolation` names one of Pillow's filters.
    """
    original_size = (image.height, image.width)
    resized = _covering_size(original_size, size) if center_crop else size
    resampling = Image.Resampling[interpolation.upper()]
    pixels = np.asarray(_center_crop(image, resized, size, resampling), np.float32) / 127.5 - 1
    cropped_mask = None
    if mask is not None:
        cropped_mask = np.asarray(_center_crop(mask, resized, size, Image.Resampling.BOX), np.float32) / 255
    return CroppedImage(
        name=name,
        pixels=np.ascontiguousarray(pixels.transpose(2, 0, 1)),
        original_size=original_size,
        crop_top_left=_crop_top_left(resized, size),
        mask=cropped_mask,
        squashed=not center_crop,
    )


def was_upscaled(image: CroppedImage) -> bool:
    """Return whether `image` is larger than in its file."""
    if image.squashed:
        return image.size[0] > image.original_size[0] or image.size[1] > image.original_size[1]
    return _covering_size(image.original_size, image.size)[0] > image.original_size[0]


def flip_horizontal(image: CroppedImage) -> CroppedImage:
    """Return `image` flipped left to right; its crop then starts where the right margin was."""
    _, resized_width = image.size if image.squashed else _covering_size(image.original_size, image.size)
    top, left = image.crop_top_left
    return replace(
        image,
        pixels=np.ascontiguousarray(image.pixels[:, :, ::-1]),
        crop_top_left=(top, resized_width - image.pixels.shape[2] - left),
        mask=None if image.mask is None else np.ascontiguousarray(image.mask[:, ::-1]),
    )


def _covering_size(original_size: Size, size: Size) -> Size:
    """Return the size to which an image is resized so that it just covers `size`, rounded to nearest."""
    height, width = original_size
    if size[0] * width >= size[1] * height:
        return size[0], (width * size[0] + height // 2) // height
    return (height * size[1] + width // 2) // width, size[1]


def _center_crop(image: Image.Image, resized: Size, size: Size, resampling: Image.Resampling) -> Image.Image:
    """Return the center, of `size`, of `image` resized to `resized`."""
    top, left = _crop_top_left(resized, size)
    # Only the crop is computed, because a very long image may not fit into memory whole; the box is in original pixels.
    y_scale = image.height / resized[0]
    x_scale = image.width / resized[1]
    box = (left * x_scale, top * y_scale, (left + size[1]) * x_scale, (top + size[0]) * y_scale)
    return image.resize((size[1], size[0]), resampling, box=box)


def _crop_top_left(resized: Size, size: Size) -> tuple[int, int]:
    return (resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2
