"""What a sampling run will do, checked before the weights are read: its prompts, images to start from, and words."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gm.config import Config, SamplingConfig
from gm.config.model import ModelConfig
from gm.data.image import CroppedImage
from gm.diffusion import guidance, samplers, schedule
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding, LoadedEmbeddings, combine
from gm.errors import UserError
from gm.runtime import atomic_io
from gm.sampling import init_image, prompt_file, refiner, resolution, vae_decode
from gm.sampling.image_request import ImageRequest
from gm.sampling.pipeline import img2img_steps
from gm.text import prompt_parser

log = logging.getLogger("gm")


@dataclass(frozen=True)
class PromptGrid:
    """The images of one prompt, and of one `source` to start from if there is any; together they make a grid.

    `sampling` are the run's options with those of the prompt's line, `img` being the source alone.
    """

    sampling: SamplingConfig
    requests: list[ImageRequest]
    source: CroppedImage | None = None


@dataclass(frozen=True)
class SamplingJob:
    """Checked options: the sheets to draw, and the words they may use."""

    config: Config
    sheets: list[PromptGrid]
    concepts: list[Embedding]
    words: LoadedEmbeddings


def prepare(config: Config, literal: bool = False) -> SamplingJob:
    """Check everything that can be wrong before the weights are read; UserError names the first thing that is.

    A `literal` prompt is drawn as it stands, though there be a file of that name.
    """
    sampling = config.sampling
    atomic_io.check_writable(sampling.save_path, "--save_path")
    concepts = [c for path in sampling.textual_inversion_weight for c in embedding_io.load_all(path)]
    known = combine(concepts, config.model)
    texts = prompt_file.read(sampling.prompt, "--prompt", literal)
    from_file = texts != [sampling.prompt]
    asked = [prompt_file.parse(text, sampling) if from_file else sampling for text in texts]
    for one in asked:
        check(dataclasses.replace(config, sampling=one))
    _warn_of_words(config, asked, concepts, known)
    started_from = [start for one in asked for start in started(one, config.model)]
    sheets = [_sheet(config, own, source) for own, source in started_from]
    return SamplingJob(config, sheets, concepts, known)


def started(sampling: SamplingConfig, model: ModelConfig) -> list[tuple[SamplingConfig, CroppedImage | None]]:
    """Return each image that `sampling` starts from, with the options for it alone; without any, a None.

    UserError for an image or mask that cannot be read, or is not what the task asks for.
    """
    task, paths, painted = sampling.task, sampling.img, sampling.mask
    for name, given, tasks in (("--img", paths, ("img2img", "inpaint")), ("--mask", painted, ("inpaint",))):
        if given and task not in tasks:
            raise UserError(f"{name} is for --task {' or '.join(tasks)}; give that, or leave it out")
    if task == "txt2img":
        return [(sampling, None)]
    if task == "inpaint" and not painted:
        raise UserError("--task inpaint needs --mask, an image that is white where it draws anew")
    redrawn = init_image.mask(painted) if painted else None
    found: list[tuple[SamplingConfig, CroppedImage | None]] = []
    for path in init_image.images(paths):
        image = init_image.read(path, sampling, model, redrawn)
        height, width = image.pixels.shape[1:]
        own = dataclasses.replace(sampling, img=[str(path)], height=height, width=width, sd_xl_base_ratios=None)
        found.append((own, image))
    return found


def check(config: Config) -> None:
    """Raise UserError for what no loaded weights could do."""
    sampling = config.sampling
    samplers.by_name(sampling.sampler)
    guidance.by_name(sampling.guider)
    schedule.sampling_sigmas(config.model.schedule, sampling)
    vae_decode.tile_side(sampling, config.model.vae)
    config.model.require("base")
    if sampling.add_pipeline:
        refiner.check(sampling, config.model)
    if sampling.task != "txt2img" and img2img_steps(sampling) < 1:
        raise UserError(
            f"--strength {sampling.strength} of {sampling.sample_step} steps is none; "
            f"give at least {1 / sampling.sample_step:.2g}"
        )


def _sheet(config: Config, sampling: SamplingConfig, source: CroppedImage | None) -> PromptGrid:
    frame = resolution.image_size(sampling, config.model)
    count = sampling.num_rows * sampling.num_cols
    noise = _noise(sampling, count, config, frame)
    requests = [ImageRequest(sampling.prompt, sampling.seed + k, noise[k]) for k in range(count)]
    return PromptGrid(sampling, requests, source)


def _warn_of_words(
    config: Config, asked: Sequence[SamplingConfig], concepts: list[Embedding], known: LoadedEmbeddings
) -> None:
    readings = [
        prompt_parser.parse(text, known.tokenizer, one.sample_step, one.prompt_weights)
        for one in asked
        for text in (one.prompt, one.negative_prompt)
    ]
    used = {number for reading in readings for v in reading.variants for chunk in v for number in chunk.ids}
    for concept in concepts:
        if not used & set(known.tokenizer.placeholders[concept.placeholder_token]):
            log.warning("no prompt uses %s", concept.placeholder_token)
        if concept.pooling != config.run.pooling:
            log.warning(
                "%s was learned with pooling %s, but %s is used; --pooling %s matches it",
                *(concept.placeholder_token, concept.pooling, config.run.pooling, concept.pooling),
            )


def _noise(
    sampling: SamplingConfig, count: int, config: Config, frame: resolution.ImageSize
) -> Sequence[np.ndarray | None]:
    """Return the noises of the file that `count` images start from, or Nones where seeds are to be used."""
    path, first = sampling.init_latent_path, sampling.init_latent_index
    if path is None:
        return [None] * count
    try:
        noise = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"no file {path}; --init_latent_path names a .npy of noise") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--init_latent_path {path} is no .npy of numbers; numpy.save writes one") from error
    vae = config.model.vae
    side = (frame.height // vae.reduction, frame.width // vae.reduction)
    wanted = (vae.latent_channels, *side)
    if (
        noise.ndim != 4
        or noise.shape[1:] != wanted
        or len(noise) < first + count
        or not np.issubdtype(noise.dtype, np.floating)
    ):
        raise UserError(
            f"--init_latent_path {path} holds {noise.dtype} {list(noise.shape)}; {count} images of "
            f"{frame.width}×{frame.height} need floats [{first + count}, {', '.join(map(str, wanted))}]"
        )
    return list(noise[first : first + count].astype(np.float32))
