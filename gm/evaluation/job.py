"""Checked options of an evaluation: embeddings, prompts, real images; defaults are read from the files."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gm.config import Config, SamplingConfig
from gm.config.evaluation import UNUSED_SAMPLING_OPTIONS
from gm.data import image_folder, image_reader
from gm.embeddings import io as embedding_io
from gm.embeddings.class_word import class_word as class_word_of
from gm.embeddings.embedding import Embedding, safe_filename
from gm.embeddings.training_options import concept_options
from gm.errors import UserError
from gm.evaluation import prompts
from gm.evaluation.prompts import EDITABILITY, RECONSTRUCTION, EvaluationPrompt, Template
from gm.evaluation.scores import HELD_OUT, TRAINING
from gm.lora import files as lora_files
from gm.runtime import atomic_io
from gm.sampling import adjusted_embeddings, option_checks, request

log = logging.getLogger("gm")


@dataclass(frozen=True)
class Subject:
    """An embedding to evaluate: its name in tables and file names, its file and the prompts with its token."""

    name: str
    file: str
    embedding: Embedding
    prompts: list[EvaluationPrompt]


@dataclass(frozen=True, eq=False)
class EvaluationJob:
    """Everything an evaluation needs but the networks.

    helpers: files and embeddings that the negative prompt uses; real: images by TRAINING and HELD_OUT, with their files
    """

    config: Config
    subjects: list[Subject]
    helpers: list[tuple[str, Embedding]]
    real: dict[str, list[Image.Image]]
    real_files: dict[str, list[str]]
    prompt_set: str
    class_word: str


def prepare(config: Config) -> EvaluationJob:
    """Return the job of the options, checked before any network is loaded; UserError names the first mistake."""
    config = _text_to_image(config)
    evaluation, sampling = config.evaluation, config.sampling
    if not evaluation.clip and not evaluation.dino:
        raise UserError("--clip and --dino are both empty, so that nothing is scored; give one of them")
    atomic_io.check_writable(sampling.save_path, "--save_path")
    lora_files.parse_all(config.run.lora_weight)
    for message in option_checks.ineffective_options(config):
        log.warning("%s", message)
    request.check(config.model, sampling)
    evaluated, helpers = _embeddings(config)
    first = evaluated[0][1]
    prompt_set, class_word = _prompt_set(config, first), _class_word(config, first)
    _warn_of_others(config, [embedding for _, embedding in evaluated[1:]], prompt_set, class_word)
    templates = _templates(config, prompt_set)
    subjects = [
        Subject(name, file, embedding, _fill(config, templates, embedding, prompt_set, class_word))
        for name, (file, embedding) in zip(_names(evaluated), evaluated, strict=True)
    ]
    for subject in subjects:
        concepts = [subject.embedding, *(embedding for _, embedding in helpers)]
        adjusted_embeddings.load(concepts, [sampling], config.model)
    real, files = _real_images(config, first)
    return EvaluationJob(config, subjects, helpers, real, files, prompt_set, class_word)


def _text_to_image(config: Config) -> Config:
    """Return `config` for images from prompts alone, whatever its YAML file says of others."""
    default = SamplingConfig()
    return dataclasses.replace(
        config,
        sampling=dataclasses.replace(
            config.sampling, **{name: getattr(default, name) for name in UNUSED_SAMPLING_OPTIONS}
        ),
    )


def _embeddings(config: Config) -> tuple[list[tuple[str, Embedding]], list[tuple[str, Embedding]]]:
    """Return (file, embedding) of those to evaluate, and of those that the negative prompt uses."""
    sampling, family = config.sampling, config.model.family
    loaded = [
        (path, each) for path in sampling.textual_inversion_weight for each in embedding_io.load_all(path, family)
    ]
    negative = sampling.negative_prompt.lower()
    helpers = [(path, each) for path, each in loaded if each.placeholder_token.lower() in negative]
    evaluated = [(path, each) for path, each in loaded if each.placeholder_token.lower() not in negative]
    evaluated += [(path, each) for path in config.evaluation.compare for each in embedding_io.load_all(path, family)]
    if not evaluated:
        raise UserError("no embedding to evaluate: give one or more files to --textual_inversion_weight or --compare")
    seen: set[tuple[str, str]] = set()
    for path, each in evaluated:
        if (path, each.placeholder_token) in seen:
            raise UserError(f"{path} is given twice; give it once")
        seen.add((path, each.placeholder_token))
    return evaluated, helpers


def _names(evaluated: Sequence[tuple[str, Embedding]]) -> list[str]:
    """Return a unique name for each embedding: its file's, with the placeholder token and folder where needed."""
    names = [embedding.name or safe_filename(embedding.placeholder_token) for _, embedding in evaluated]
    for add in (
        lambda path, embedding: safe_filename(Path(path).absolute().parent.name),
        lambda path, embedding: safe_filename(embedding.placeholder_token),
    ):
        additions = [add(path, embedding) for path, embedding in evaluated]
        names = [
            f"{addition}_{name}" if addition and names.count(name) > 1 else name
            for name, addition in zip(names, additions, strict=True)
        ]
    return [f"{name}-{names[:k].count(name) + 1}" if name in names[:k] else name for k, name in enumerate(names)]


def _prompt_set(config: Config, embedding: Embedding) -> str:
    chosen = config.evaluation.prompt_set
    return chosen or prompts.SET_OF_PROPERTY.get(str(concept_options(embedding).get("learnable_property")), "object")


def _class_word(config: Config, embedding: Embedding) -> str:
    chosen = config.evaluation.class_word
    return class_word_of(embedding) if chosen is None else chosen.strip()


def _warn_of_others(config: Config, others: Sequence[Embedding], prompt_set: str, class_word: str) -> None:
    """Log the choices that no option made, and warn of embeddings whose files record others."""
    evaluation = config.evaluation
    if not evaluation.prompt_set:
        log.info("prompts for the type %s; --prompt_set chooses others", prompt_set)
    if evaluation.class_word is None and prompt_set != "style":
        what = (
            f"class word {class_word}, which its file records" if class_word else "no class word, as no file says one"
        )
        log.info("%s; --class_word chooses another", what)
    for other in others:
        if not evaluation.prompt_set and _prompt_set(config, other) != prompt_set:
            log.warning("%s is of another type; --prompt_set says which prompts are meant", other.placeholder_token)
        if evaluation.class_word is None and prompt_set != "style" and _class_word(config, other) != class_word:
            log.warning(
                "%s has another class word in its file; the class word is %r for all, --class_word chooses another",
                other.placeholder_token,
                class_word,
            )


def _templates(config: Config, prompt_set: str) -> dict[str, tuple[Template, ...]]:
    """Return the templates of each group, those of files in place of the set's."""
    files = {
        RECONSTRUCTION: ("--reconstruction_prompts", config.evaluation.reconstruction_prompts),
        EDITABILITY: ("--editability_prompts", config.evaluation.editability_prompts),
    }
    return {
        group: prompts.read_templates(option, file) if file else prompts.PROMPT_SETS[prompt_set][group]
        for group, (option, file) in files.items()
    }


def _fill(
    config: Config,
    templates: dict[str, tuple[Template, ...]],
    embedding: Embedding,
    prompt_set: str,
    class_word: str,
) -> list[EvaluationPrompt]:
    concept = embedding.placeholder_token
    if class_word and config.evaluation.class_word_in_prompts and prompt_set != "style":
        concept = f"{concept} {class_word}"
    return [each for group in templates for each in prompts.fill(templates[group], group, concept, class_word)]


def _real_images(config: Config, embedding: Embedding) -> tuple[dict[str, list[Image.Image]], dict[str, list[str]]]:
    """Return the real images and their files, by TRAINING and HELD_OUT."""
    evaluation = config.evaluation
    recorded = str(concept_options(embedding).get("data_path") or "")
    training = evaluation.training_images or config.concept.data_path or recorded
    if not training:
        raise UserError(
            f"{embedding.placeholder_token} does not record its training images; give their folder with "
            "--training_images"
        )
    folders = {TRAINING: ("--training_images", training)}
    if evaluation.held_out_images:
        folders[HELD_OUT] = ("--held_out_images", evaluation.held_out_images)
    else:
        log.warning(
            "scores against the training images reward copies of them; --held_out_images gives images that were not "
            "trained on"
        )
    images: dict[str, list[Image.Image]] = {}
    files: dict[str, list[str]] = {}
    for kind, (option, folder) in folders.items():
        paths = _image_paths(option, folder)
        images[kind] = [image_reader.read_image(path).rgb for path in paths]
        files[kind] = [str(path) for path in paths]
    _check_held_out(images, files)
    return images, files


def _image_paths(option: str, folder: str) -> list[Path]:
    place = Path(folder)
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{option} {folder} does not exist; give a folder with images")
    paths = image_folder.image_files(place)
    if not paths:
        raise UserError(f"{option} {folder} has no image; give a folder with images")
    return paths


def _check_held_out(images: dict[str, list[Image.Image]], files: dict[str, list[str]]) -> None:
    """Raise UserError for a held-out image that is a training image, too."""
    trained = [np.asarray(image) for image in images[TRAINING]]
    for image, file in zip(images.get(HELD_OUT, []), files.get(HELD_OUT, []), strict=True):
        pixels = np.asarray(image)
        for other, name in zip(trained, files[TRAINING], strict=True):
            if np.array_equal(pixels, other):
                raise UserError(f"--held_out_images: {file} is the training image {name}; give images of its own")
