"""Image sizes: the pixels of an image, and the size conditioning of SDXL."""

from __future__ import annotations

from dataclasses import dataclass

from gm.config import SamplingConfig
from gm.config.model import ModelConfig
from gm.errors import UserError, did_you_mean

# Width and height of the aspect ratios (width / height) that SDXL was trained on (Podell et al., 2023, appendix I).
ASPECT_RATIOS: dict[str, tuple[int, int]] = {
    "0.25": (512, 2048),
    "0.26": (512, 1984),
    "0.27": (512, 1920),
    "0.28": (512, 1856),
    "0.32": (576, 1792),
    "0.33": (576, 1728),
    "0.35": (576, 1664),
    "0.4": (640, 1600),
    "0.42": (640, 1536),
    "0.48": (704, 1472),
    "0.5": (704, 1408),
    "0.52": (704, 1344),
    "0.57": (768, 1344),
    "0.6": (768, 1280),
    "0.68": (832, 1216),
    "0.72": (832, 1152),
    "0.78": (896, 1152),
    "0.82": (896, 1088),
    "0.88": (960, 1088),
    "0.94": (960, 1024),
    "1.0": (1024, 1024),
    "1.07": (1024, 960),
    "1.13": (1088, 960),
    "1.21": (1088, 896),
    "1.29": (1152, 896),
    "1.38": (1152, 832),
    "1.46": (1216, 832),
    "1.67": (1280, 768),
    "1.75": (1344, 768),
    "1.91": (1344, 704),
    "2.0": (1408, 704),
    "2.09": (1472, 704),
    "2.4": (1536, 640),
    "2.5": (1600, 640),
    "2.89": (1664, 576),
    "3.0": (1728, 576),
}


@dataclass(frozen=True)
class Resolution:
    """Height and width of an image in pixels, and SDXL's size conditioning (Podell et al., 2023, section 2.2).

    size_conditioning: original height and width, crop top and left, target height and width
    """

    height: int
    width: int
    size_conditioning: tuple[int, int, int, int, int, int]


def from_options(sampling: SamplingConfig, model: ModelConfig) -> Resolution:
    """Return the resolution that the options give; without any it is the model's own.

    Raises UserError for an unknown aspect ratio, for an aspect ratio beside a height or width, and for sides that the
    VAE cannot halve often enough.
    """
    width = height = model.resolution
    ratio = sampling.sd_xl_base_ratios
    if ratio is not None:
        if sampling.height is not None or sampling.width is not None:
            raise UserError("--sd_xl_base_ratios sets height and width; leave out --height and --width, or it")
        if ratio not in ASPECT_RATIOS:
            nearest = did_you_mean(ratio, ASPECT_RATIOS)
            raise UserError(f"unknown --sd_xl_base_ratios {ratio!r}; known are {', '.join(ASPECT_RATIOS)}{nearest}")
        width, height = ASPECT_RATIOS[ratio]
    height = sampling.height or height
    width = sampling.width or width
    reduction = model.vae.downsample_factor
    for name, side in (("height", height), ("width", width)):
        if side % reduction:
            raise UserError(f"--{name} is {side}; it must be a multiple of {reduction}, the VAE's reduction")
    size_conditioning = (
        sampling.orig_height or height,
        sampling.orig_width or width,
        sampling.crop_coords_top,
        sampling.crop_coords_left,
        sampling.target_height or height,
        sampling.target_width or width,
    )
    return Resolution(height, width, size_conditioning)
