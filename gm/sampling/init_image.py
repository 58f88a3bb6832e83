"""The images that img2img and inpaint start from: their files, their mask, their latents, what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gm.config import SamplingConfig
from gm.config.model import ModelConfig
from gm.data import bucketing, image_folder, latent_cache, masks
from gm.data.bucketing import Size
from gm.data.image import CroppedImage, crop, open_image, to_rgb
from gm.errors import UserError
from gm.models.sdxl import SDXL
from gm.sampling import resolution

_STEPS = 16  # sides that a square of the model's resolution is cut into: SDXL was trained on multiples of 1024 / 16


def images(paths: Sequence[str]) -> list[Path]:
    """Return the files that `--img` names, those of a folder in the order of their names.

    UserError for none, for what is not there, and for a folder without images.
    """
    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if not name.strip() or not path.exists():
            raise UserError(f"--img {name!r} is not there; give images, or folders of them")
        inside = image_folder.image_files(path) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"--img {name} is a folder without images; put .jpg or .png files right into it")
        found += inside
    if not found:
        raise UserError("--img is empty; img2img and inpaint start from images, or folders of them")
    return found


def mask(path: str) -> Image.Image:
    """Return the image that `--mask` names, upright and grey; white is drawn anew. UserError if there is none."""
    if not path.strip() or not Path(path).is_file():
        raise UserError(f"--mask {path!r} is not a file; give an image that is white where inpaint draws anew")
    with open_image(Path(path)) as upright:
        if upright.has_transparency_data and np.asarray(upright.convert("RGBA"))[..., 3].min() < 255:
            raise UserError(f"--mask {path} is transparent in parts; save it without, white where inpaint draws anew")
        grey = to_rgb(upright).convert("L")
    if not grey.getbbox():
        raise UserError(f"--mask {path} is black all over, so that nothing is drawn anew; white is")
    return grey


def frame_for(original: Size, sampling: SamplingConfig, model: ModelConfig) -> Size:
    """Return the height and width to draw at, for an image of `original` height and width.

    What the options give; without any the nearest shape of the model's area, from 1:4 to 4:1. UserError for options
    that `sizes.frame` refuses.
    """
    if sampling.height or sampling.width or sampling.sd_xl_base_ratios is not None:
        frame = resolution.image_size(sampling, model)
        return frame.height, frame.width
    reduction = model.vae.reduction
    step = max(model.resolution // _STEPS // reduction, 1) * reduction
    return bucketing.nearest(original, bucketing.sizes(model.resolution, step))


def read(path: Path, sampling: SamplingConfig, model: ModelConfig, redrawn: Image.Image | None = None) -> CroppedImage:
    """Return the image in the file `path`, scaled to cover the frame to draw at and cut to that in its middle.

    `redrawn`, a mask, goes with it, of its shape and any size. UserError for a file that cannot be read, a mask of
    another shape, and one that leaves nothing to draw.
    """
    with open_image(path) as upright:
        image = to_rgb(upright)
    if redrawn is not None and not masks.same_shape(redrawn, image):
        raise UserError(
            f"--mask is {redrawn.width}×{redrawn.height}, but {path} {image.width}×{image.height}; "
            "make them of one shape"
        )
    cropped = crop(image, redrawn, path.name, frame_for((image.height, image.width), sampling, model))
    if cropped.mask is not None and not cropped.mask.any():
        raise UserError(
            f"--mask is black in the middle of {path}, all that is used; give --height and --width as it has"
        )
    return cropped


def latent_mask(image: CroppedImage, reduction: int) -> np.ndarray:
    """Return the mask of `image` at the size of its latents, float32 [h, w]: the mean over what becomes a latent."""
    assert image.mask is not None
    return masks.areas(image.mask[None], reduction)[0]


def encode(model: SDXL, shown: Sequence[CroppedImage]) -> np.ndarray:
    """Return the scaled latents [N, z, h, w] of images of one size: the means of their posteriors.

    One at a time, so that they do not depend on the others, and in PyNative mode: one image is not worth a graph.
    """
    encoded = latent_cache.encode(
        model.first_stage_model, shown, flip=False, scale_factor=model.config.vae.scale_factor
    )
    return np.concatenate(encoded.mean) * np.float32(encoded.scale_factor)


def paste(drawn: np.ndarray, pixels: np.ndarray, redrawn: np.ndarray) -> np.ndarray:
    """Return `drawn`, uint8 [H, W, 3], where the mask `redrawn` [H, W] is 1, and the image where it is 0.

    `pixels` [3, H, W] from -1 to 1 come back exactly as they were in 8 bits; in between both are mixed.
    """
    kept = pixels.transpose(1, 2, 0) * 127.5 + 127.5
    share = redrawn[..., None]
    return np.rint(share * drawn + (1 - share) * kept).astype(np.uint8)
