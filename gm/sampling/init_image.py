"""Initial images and masks of img2img and inpainting, and initial noise from a file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gm.config import SamplingConfig, paths
from gm.config.model import ModelConfig
from gm.config.networks import VAEConfig
from gm.data import bucketing, image_folder, latent_cache, masks
from gm.data.bucketing import Size
from gm.data.image import CroppedImage, resize_and_crop
from gm.data.image_reader import open_image, read_image, read_mask
from gm.errors import UserError
from gm.models.stable_diffusion import StableDiffusion
from gm.sampling import resolution
from gm.sampling.resolution import Resolution

log = logging.getLogger("gm")

_ASPECT_STEPS = 16  # SDXL was trained on sides that are multiples of a 16th of its resolution, 1024


@dataclass(frozen=True, eq=False)
class InitImage:
    """An image that img2img or inpainting starts from, cropped to the size to generate; its mask goes with it."""

    path: Path
    cropped: CroppedImage

    @property
    def options(self) -> dict[str, Any]:
        """Options of SamplingConfig for this image alone."""
        height, width = self.cropped.size
        return {"img": [str(self.path)], "height": height, "width": width, "sd_xl_base_ratios": None}


def check_task(sampling: SamplingConfig) -> None:
    """Raise UserError for an image or a mask that `--task` does not take, and for a mask that it lacks."""
    options = (("--img", sampling.img, ("img2img", "inpaint")), ("--mask", sampling.mask, ("inpaint",)))
    for name, value, tasks in options:
        if value and sampling.task not in tasks:
            raise UserError(f"{name} is for --task {' or '.join(tasks)}; give that, or leave it out")
    if sampling.task == "inpaint" and not sampling.mask:
        raise UserError("--task inpaint needs --mask, an image that is white where to inpaint")


def load_all(sampling: SamplingConfig, model: ModelConfig) -> list[InitImage]:
    """Return every image that `--img` names, with the mask; UserError for one that cannot be used."""
    check_task(sampling)
    mask = load_mask(sampling.mask) if sampling.mask else None
    return [InitImage(path, load(path, sampling, model, mask)) for path in find_images(sampling.img)]


def find_images(paths: Sequence[str]) -> list[Path]:
    """Return the files that `--img` names, those of a folder in the order of their names.

    Raises UserError for no path, a path that does not exist, and a folder without images.
    """
    files: list[Path] = []
    for name in paths:
        path = Path(name)
        if not name.strip() or not path.exists():
            raise UserError(f"--img {name!r} does not exist; give images, or folders of them")
        images = _folder_images(path) if path.is_dir() else [path]
        if not images:
            raise UserError(f"--img {name} is a folder without images; put .jpg or .png files directly into it")
        files += images
    if not files:
        raise UserError("--img is empty; img2img and inpaint start from images, or folders of them")
    return files


def _folder_images(folder: Path) -> list[Path]:
    sidecars = ", ".join(path.name for path in image_folder.sidecar_files(folder))
    if sidecars:
        log.warning("--img %s: not used as init images, but masks by their names or the like: %s", folder, sidecars)
    return image_folder.image_files(folder)


def load_mask(path: str) -> Image.Image:
    """Return the image that `--mask` names, upright and gray, white where to inpaint.

    Raises UserError for a path that is not a file, and for a mask that is transparent or black all over.
    """
    if not path.strip() or not Path(path).is_file():
        raise UserError(f"--mask {path!r} is not a file; give an image that is white where to inpaint")
    mask, alpha = read_mask(Path(path))
    if alpha is not None:  # ComfyUI inpaints where an image is transparent, others where it is white
        raise UserError(f"--mask {path} is partly transparent; save it without transparency, white where to inpaint")
    if not mask.getbbox():
        raise UserError(f"--mask {path} is black all over, which inpaints nothing; make it white where to inpaint")
    return mask


def output_size(original: Size, sampling: SamplingConfig, model: ModelConfig) -> Size:
    """Return the height and width to generate at, for an initial image of `original` height and width.

    The options decide; without any it is the nearest aspect ratio of the model's area, from 1:4 to 4:1. UserError as
    of `resolution.from_options`.
    """
    if sampling.height or sampling.width or sampling.sd_xl_base_ratios is not None:
        size = resolution.from_options(sampling, model)
        return size.height, size.width
    reduction = model.vae.downsample_factor
    step = max(model.resolution // _ASPECT_STEPS // reduction, 1) * reduction
    return bucketing.select_bucket(original, bucketing.make_bucket_resolutions(model.resolution, step))


def load(path: Path, sampling: SamplingConfig, model: ModelConfig, mask: Image.Image | None = None) -> CroppedImage:
    """Return the image at `path`, scaled to cover the output size and cropped to it in its middle.

    The `mask`, of any size but the image's aspect ratio, is cropped with it. UserError for a file that cannot be read,
    a mask of another aspect ratio, and one that is black within the crop.
    """
    if mask is not None:
        with open_image(path) as file:
            if not masks.may_fit(mask, file):
                raise UserError(_misfit(mask, path, file))
    image = read_image(path).rgb
    if mask is not None and not masks.same_aspect_ratio(mask, image):
        raise UserError(_misfit(mask, path, image))
    cropped = resize_and_crop(image, mask, path.name, output_size((image.height, image.width), sampling, model))
    if cropped.mask is not None and not cropped.mask.any():
        raise UserError(
            f"--mask is black in the middle of {path}, which is all that is used; give the image's --height and --width"
        )
    return cropped


def _misfit(mask: Image.Image, path: Path, image: Image.Image) -> str:
    return (
        f"--mask is {mask.width}×{mask.height}, but {path} is {image.width}×{image.height}; give both one aspect ratio"
    )


def latent_mask(image: CroppedImage, reduction: int) -> np.ndarray:
    """Return the mask of `image` at the size of its latents, float32 [h, w]: the mean over the pixels of a latent."""
    assert image.mask is not None
    return masks.downscale(image.mask[None], reduction)[0]


def encode(model: StableDiffusion, images: Sequence[CroppedImage]) -> np.ndarray:
    """Return the scaled latents [N, z, h, w] of images of one size: the means of their posteriors.

    One at a time, so that they do not depend on the others, and in PyNative mode: one image is not worth a graph.
    """
    encoded = latent_cache.encode_images(
        model.first_stage_model, images, flip=False, scale_factor=model.config.vae.scale_factor
    )
    return np.concatenate(encoded.mean) * np.float32(encoded.scale_factor)


def paste(generated: np.ndarray, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return `generated`, uint8 [H, W, 3], where `mask` [H, W] is 1, and the initial image where it is 0.

    `pixels` [3, H, W] from -1 to 1 come back exactly as they were in 8 bits; in between both are mixed.
    """
    initial = pixels.transpose(1, 2, 0) * 127.5 + 127.5
    weight = mask[..., None]
    return np.rint(weight * generated + (1 - weight) * initial).astype(np.uint8)


def load_noise(sampling: SamplingConfig, vae: VAEConfig, size: Resolution, count: int) -> list[np.ndarray]:
    """Return the initial noises [z, h, w] of `count` images in the file `--init_latent_path`.

    Raises UserError for a file that cannot be read, and for one that does not fit the images.
    """
    path, first = str(sampling.init_latent_path), sampling.init_latent_index
    paths.check_regular(path, "--init_latent_path")
    try:
        noise = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"--init_latent_path {path} is not a file; give a .npy of noise") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--init_latent_path {path} is not a .npy of numbers; numpy.save writes one") from error
    shape = (vae.latent_channels, size.height // vae.downsample_factor, size.width // vae.downsample_factor)
    fits = noise.ndim == 4 and noise.shape[1:] == shape and len(noise) >= first + count
    if not fits or not np.issubdtype(noise.dtype, np.floating):
        raise UserError(
            f"--init_latent_path {path} holds {noise.dtype} {list(noise.shape)}; {count} images of "
            f"{size.width}×{size.height} need floats [{first + count}, {', '.join(map(str, shape))}]"
        )
    if not np.isfinite(noise[first : first + count]).all():
        raise UserError(f"--init_latent_path {path} holds values that are not finite; give standard-normal noise")
    return list(noise[first : first + count].astype(np.float32))
