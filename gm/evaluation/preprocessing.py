"""Images as an image encoder takes them: resized, cropped and normalised as its preprocessor_config.json says.

The computation is that of transformers' image processors with Pillow: the image is resized in 8 bits, its center is
cropped, and the values from 0 to 1 are normalised by mean and standard deviation of each channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from gm.errors import UserError
from gm.evaluation.encoder_configs import CLIP, DINO, DINOV2

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ALWAYS = ("do_resize", "do_rescale", "do_normalize")
_MOMENTS = ("mean", "std")


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an image to the pixels of a network.

    shortest_edge: pixels to which the shorter side is resized; 0: the image is squashed to `size` × `size`
    size: side of the center crop, and of the result
    resample: number of Pillow's filter
    """

    shortest_edge: int
    size: int
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return the pixels, float32 [3, size, size], of an image of mode RGB."""
        resampling = Image.Resampling(self.resample)
        if not self.shortest_edge:
            return self._normalise(image.resize((self.size, self.size), resampling))
        short, long = sorted(image.size)
        longer = int(self.shortest_edge * long / short)
        upright = image.width <= image.height
        width, height = (self.shortest_edge, longer) if upright else (longer, self.shortest_edge)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        resized = image.resize((width, height), resampling)
        return self._normalise(resized.crop((left, top, left + self.size, top + self.size)))

    def _normalise(self, image: Image.Image) -> np.ndarray:
        values = np.asarray(image, np.float32) * np.float32(self.scale)
        values = (values - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))


# Those of openai/clip-vit-base-patch32 and -large-patch14, facebook/dino-vits16 and facebook/dinov2-base.
PUBLISHED = {
    CLIP: Preprocessing(224, 224, Image.Resampling.BICUBIC, _CLIP_MEAN, _CLIP_STD),
    DINO: Preprocessing(0, 224, Image.Resampling.BILINEAR, _IMAGENET_MEAN, _IMAGENET_STD),
    DINOV2: Preprocessing(256, 224, Image.Resampling.BICUBIC, _IMAGENET_MEAN, _IMAGENET_STD),
}


def read(values: Mapping[str, Any], kind: str, path: object) -> Preprocessing:
    """Return the preprocessing in the preprocessor_config.json at `path`; missing values are those of its `kind`.

    Raises UserError for a step that is not computed here.
    """
    published = PUBLISHED[kind]
    for step in _ALWAYS:
        if values.get(step, True) is not True:
            raise UserError(f"{path}: {step} is {values[step]!r}, and only true is computed; choose another model")
    does_crop = values.get("do_center_crop", published.shortest_edge > 0)
    shortest_edge, size = _sizes(values, published, does_crop, path)
    try:
        mean, std = (tuple(map(float, values.get(f"image_{name}", getattr(published, name)))) for name in _MOMENTS)
        resample = Image.Resampling(values.get("resample", published.resample))
        scale = float(values.get("rescale_factor", published.scale))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} has a value that is not one of image_mean, image_std or resample: {error}") from error
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(f"{path}: image_mean and image_std must be three numbers, image_std above 0")
    return Preprocessing(shortest_edge, size, resample, mean, std, scale)


def _sizes(values: Mapping[str, Any], published: Preprocessing, does_crop: bool, path: object) -> tuple[int, int]:
    """Return (shortest_edge, size); older files have numbers, newer ones mappings."""
    size = values.get("size", published.shortest_edge or published.size)
    if isinstance(size, dict) and "shortest_edge" not in size:
        square = _side(size, "size", path)
        if does_crop and _side(values.get("crop_size", square), "crop_size", path) != square:
            raise UserError(f"{path}: a crop of images that are squashed to a square is not computed")
        return 0, square
    side = _side(size, "size", path)
    if not does_crop:
        if isinstance(size, dict):
            raise UserError(f"{path}: images that keep their shape (do_center_crop false) are not computed")
        return 0, side
    crop = _side(values.get("crop_size", published.size), "crop_size", path)
    if crop > side:
        raise UserError(f"{path}: crop_size {crop} is larger than size {side}, which is not computed")
    return side, crop


def _side(value: Any, name: str, path: object) -> int:
    """Return the side of a square that a number or {height, width} or {shortest_edge} describes."""
    sides = list(value.values()) if isinstance(value, dict) else [value]
    side = sides[0] if sides and all(each == sides[0] for each in sides) else None
    if not isinstance(side, int) or side < 1:
        raise UserError(f"{path}: {name} is {value!r}; only squares are computed")
    return side
