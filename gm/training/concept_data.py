"""Training data of concepts: images, prompts, captions and initial vectors, read and checked."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gm.config import ConceptConfig, Config
from gm.config.model import ModelConfig
from gm.data import captions, image_folder, templates
from gm.data.bucketing import Size
from gm.data.captions import Captions
from gm.data.image import CroppedImage
from gm.embeddings import init
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import check_dims, safe_filename
from gm.errors import UserError
from gm.sampling import prompt_file
from gm.text.tokenizer import VOCAB_SIZE, Tokenizer

log = logging.getLogger("gm")


@dataclass(frozen=True)
class TrainingConcept:
    """A concept with its training data; a negative concept has no images, prompts or captions.

    file_stem: its name in file names; vector_slice: its part of the embedding vectors of all concepts; prompts: the
    templates, filled in; captions: those of each image (none: use a template), or empty; initializer_ids: tokens whose
    embeddings are the initial vectors; initial_vectors: vectors of an embedding file by text encoder;
    initializer_names: token ids of names whose mean is taken. Without all of them, the initial vectors are random.
    """

    config: ConceptConfig
    file_stem: str
    vector_slice: slice
    images: list[CroppedImage]
    prompts: tuple[str, ...]
    captions: tuple[Captions, ...] = ()
    initializer_ids: list[int] | None = None
    initial_vectors: dict[str, np.ndarray] | None = None
    initializer_names: list[list[int]] | None = None

    @property
    def placeholder_token(self) -> str:
        return self.config.placeholder_token


def concept_configs(config: Config) -> list[ConceptConfig]:
    """Return the options of every concept of the run, the negative one last."""
    return config.concepts or [config.concept]


def file_stems(concepts: Sequence[ConceptConfig]) -> list[str]:
    """Return a unique name for the files of each concept: the placeholder token without unsafe characters."""
    stems: list[str] = []
    for number, concept in enumerate(concepts, 1):
        stem = safe_filename(concept.placeholder_token) or f"word{number}"
        used = {each.lower() for each in stems}
        stems.append(f"{stem}-{number}" if stem.lower() in used else stem)
    return stems


def read(
    concept: ConceptConfig, file_stem: str, config: Config, tokenizer: Tokenizer, bucket_sizes: list[Size] | None
) -> TrainingConcept:
    """Read the training data of a concept whose placeholder token `tokenizer` has; UserError for the first mistake.

    `bucket_sizes` are the possible sizes of images, None for squares alone.
    """
    token = concept.placeholder_token
    ids = tokenizer.placeholders[token]
    training_concept = TrainingConcept(
        concept,
        file_stem,
        slice(ids[0] - VOCAB_SIZE, ids[-1] + 1 - VOCAB_SIZE),
        images=[],
        prompts=(),
        initializer_ids=_initializer_ids(concept, tokenizer),
        initial_vectors=_initial_vectors(concept, config.model),
        initializer_names=_initializer_names(concept, tokenizer.context_length),
    )
    if concept.negative:
        return training_concept
    _check_class_word(concept, tokenizer)
    lines = templates.load(concept.learnable_property, concept.template_file)
    prompts = tuple(templates.fill(line, token, concept.class_word) for line in lines)
    resolution = config.data.resolution or config.model.resolution
    images = image_folder.load_images(
        concept.data_path,
        resolution,
        config.data.masks,
        bucket_sizes,
        config.data.center_crop,
        config.data.image_interpolation_mode,
    )
    image_captions = _captions(concept, images, tokenizer) if config.data.captions else ()
    return dataclasses.replace(training_concept, images=images, prompts=prompts, captions=image_captions)


def fingerprint(concepts: Sequence[TrainingConcept], context_prompts: Sequence[str] = ()) -> str:
    """Return a hash of all images, masks, prompts and captions, and of the `context_prompts` if there are any."""
    digest = hashlib.sha256("\n".join(context_prompts).encode())
    for concept in concepts:
        # A single caption stands by itself, and none is None, as in the checkpoints of earlier versions.
        captions = tuple(each if len(each) > 1 else next(iter(each), None) for each in concept.captions)
        digest.update(repr((concept.placeholder_token, concept.prompts, captions)).encode())
        for image in concept.images:
            digest.update(repr((image.name, image.original_size, image.crop_top_left)).encode())
            digest.update(image.pixels.tobytes())
            digest.update(b"" if image.mask is None else image.mask.tobytes())
    return digest.hexdigest()[:16]


def repeats(concepts: Sequence[TrainingConcept]) -> list[int]:
    """Return the repeats of each concept's images in an epoch, by default so that all have about as many images.

    5, 6 and 20 images get 4, 3 and 1 repeats: 20, 18 and 20 images.
    """
    most = max(len(concept.images) for concept in concepts)
    return [
        0 if not concept.images else concept.config.repeats or max(1, round(most / len(concept.images)))
        for concept in concepts
    ]


def _captions(concept: ConceptConfig, images: list[CroppedImage], tokenizer: Tokenizer) -> tuple[Captions, ...]:
    ids = {*tokenizer.placeholders[concept.placeholder_token]}

    def holds_token(text: str) -> bool:
        return not ids.isdisjoint(tokenizer.encode(text))

    names = [image.name for image in images]
    token, class_word = concept.placeholder_token, concept.class_word
    return captions.load_captions(concept.data_path, names, token, holds_token, class_word)


def _check_class_word(concept: ConceptConfig, tokenizer: Tokenizer) -> None:
    """Raise UserError for a class word that is no text, or holds a placeholder token."""
    word = concept.class_word
    if word is None:
        return
    ids = tokenizer.encode(word)
    if not ids or "{}" in word or word != " ".join(word.split()):
        raise UserError(
            f"--class_word {word!r} of {concept.placeholder_token} is not a word or phrase; give one, such as toy, or "
            "leave it out"
        )
    if max(ids) >= VOCAB_SIZE:
        raise UserError(
            f"--class_word {word!r} of {concept.placeholder_token} holds a placeholder token; give a word that the "
            "model knows, such as toy"
        )


def _initializer_ids(concept: ConceptConfig, tokenizer: Tokenizer) -> list[int] | None:
    if concept.initializer_token is None:
        if concept.cross_initialization and concept.initializer_names_file is None:
            raise UserError(
                f"--cross_initialization of {concept.placeholder_token} needs the word whose output its vectors begin "
                "with; give --initializer_token, or for faces --initializer_names_file"
            )
        return None
    ids = init.token_ids(concept.initializer_token, Tokenizer(tokenizer.context_length))  # without placeholder tokens
    if len(ids) > concept.num_vectors:
        log.warning(
            "--initializer_token %r has %d tokens; --num_vectors %d uses the first %d",
            concept.initializer_token,
            len(ids),
            concept.num_vectors,
            concept.num_vectors,
        )
    return ids


def _initializer_names(concept: ConceptConfig, context_length: int) -> list[list[int]] | None:
    """Return the token ids of the names in `initializer_names_file`; UserError if it holds none."""
    if concept.initializer_names_file is None:
        return None
    for option in ("initializer_token", "initializer_file"):
        if getattr(concept, option) is not None:
            raise UserError(f"--initializer_names_file and --{option} exclude each other; give one of them")
    lines = prompt_file.read(concept.initializer_names_file, "--initializer_names_file")
    if lines == [concept.initializer_names_file]:
        raise UserError(f"--initializer_names_file {lines[0]} is not a file; give a text file with a name a line")
    tokenizer = Tokenizer(context_length)  # without placeholder tokens
    names = [ids for ids in map(tokenizer.encode, lines) if ids]
    if not names:
        raise UserError(f"--initializer_names_file {concept.initializer_names_file} has no name; write a name a line")
    return names


def _initial_vectors(concept: ConceptConfig, model: ModelConfig) -> dict[str, np.ndarray] | None:
    """Return the vectors of `initializer_file`; UserError if they do not fit the model, or a token is given too."""
    if concept.initializer_file is None:
        return None
    if concept.initializer_token is not None:
        raise UserError("--initializer_file and --initializer_token exclude each other; give one of them")
    embedding = embedding_io.load(concept.initializer_file, model.family)
    check_dims(embedding, model)
    if embedding.num_vectors > concept.num_vectors:
        log.warning(
            "--initializer_file %s has %d vectors; --num_vectors %d uses the first %d",
            concept.initializer_file,
            embedding.num_vectors,
            concept.num_vectors,
            concept.num_vectors,
        )
    return embedding.vectors
