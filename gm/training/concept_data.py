"""What there is to learn: each word with its options, its images and what is said of them."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from dataclasses import dataclass, fields

import numpy as np

from gm.config import ConceptConfig, Config, WordConfig, schema
from gm.config.model import ModelConfig
from gm.config.schema import option
from gm.data import captions, image_folder, templates
from gm.data.bucketing import Size
from gm.data.image import CroppedImage
from gm.embeddings import init
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import check_dims, safe_filename
from gm.errors import UserError
from gm.text.tokenizer import VOCAB_SIZE, Tokenizer

log = logging.getLogger("gm")


@dataclass(frozen=True)
class Entry(WordConfig):
    """The options of one word."""

    data_path: str = option("", "folder of its 3 to 20 images")
    repeats: int | None = option(
        None,
        "how often its images are shown for once of others'; without it all words are shown about as often",
        minimum=1,
    )
    negative: bool = option(False, "learned as what to keep away from, out of the other words' images")


@dataclass(frozen=True)
class TrainingConcept:
    """One word, checked and read; a negative one has no images, prompts or captions.

    name: of its files; rows: which of all rows are its own; prompts: templates with the word filled in;
    captions: of each image, or none at all; ids: tokens whose rows to start from, None for random rows;
    start: rows of an embedding file to start from, instead
    """

    entry: Entry
    name: str
    rows: slice
    images: list[CroppedImage]
    prompts: tuple[str, ...]
    captions: tuple[str | None, ...] = ()
    ids: list[int] | None = None
    start: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def word(self) -> str:
        return self.entry.placeholder_token


def entries(config: Config) -> list[Entry]:
    """Return the options of every word to learn, the negative one last.

    What an entry of `concepts` leaves out is as in the config's other options. UserError for an entry that is no
    mapping of options, a second negative one, and one without another word.
    """
    common = {f.name: getattr(config.concept, f.name) for f in fields(WordConfig)}
    common["data_path"] = config.data.data_path
    found: list[Entry] = []
    listed = [
        m
        for given in config.concept.concepts
        for m in (schema.load_mappings(given) if isinstance(given, str) else [given])
    ]
    for number, given in enumerate(listed, 1):
        source = f"--concepts, word {number}"
        if not isinstance(given, dict):
            raise UserError(f"{source} is {given!r}; write {{placeholder_token: <word>, data_path: folder}}")
        found.append(schema.merge(Entry, None, {**common, **given}, source))
        if found[-1].negative and given.get("data_path"):
            raise UserError(f"{source}: a negative word is learned from the others' images; leave out its data_path")
    if not found:
        return [Entry(**common)]
    negative = [entry for entry in found if entry.negative]
    if len(negative) > 1:
        raise UserError("--concepts has two negative words; there can be one")
    if len(negative) == len(found):
        raise UserError("--concepts has a negative word alone; there must be one that it is learned with")
    return [entry for entry in found if not entry.negative] + [
        dataclasses.replace(entry, data_path="") for entry in negative
    ]


def resolved(config: Config, found: list[Entry]) -> Config:
    """Return `config` with every option of the words written out; one word is as if there had been no `concepts`."""
    if not config.concept.concepts:
        return config
    if len(found) > 1:
        written = [dataclasses.asdict(entry) for entry in found]
        return dataclasses.replace(config, concept=dataclasses.replace(config.concept, concepts=written))
    own = {f.name: getattr(found[0], f.name) for f in fields(WordConfig)}
    data = dataclasses.replace(config.data, data_path=found[0].data_path)
    return dataclasses.replace(config, concept=ConceptConfig(**own), data=data)


def names(found: list[Entry]) -> list[str]:
    """Return what the files of each word are called: the word, without what a file's name should not hold."""
    made: list[str] = []
    for number, entry in enumerate(found, 1):
        name = safe_filename(entry.placeholder_token) or f"word{number}"
        made.append(f"{name}-{number}" if name.lower() in map(str.lower, made) else name)
    return made


def read(entry: Entry, name: str, config: Config, tokenizer: Tokenizer, known: list[Size] | None) -> TrainingConcept:
    """Read what there is to learn a word from that `tokenizer` knows; UserError for the first thing that is wrong.

    `known` are the sizes that images may have, if they need not be square.
    """
    word, data = entry.placeholder_token, config.data
    own = tokenizer.placeholders[word]
    rows = slice(own[0] - VOCAB_SIZE, own[-1] + 1 - VOCAB_SIZE)
    concept = TrainingConcept(entry, name, rows, [], (), (), _ids(entry, tokenizer), _start(entry, config.model))
    if entry.negative:
        return concept
    filled = templates.load(entry.learnable_property, entry.template_file)
    prompts = tuple(templates.fill(line, word) for line in filled)
    tokenizer(prompts, padding=0)  # finds a prompt that has no room for the placeholder
    images = image_folder.load_images(entry.data_path, data.resolution or config.model.resolution, data.masks, known)
    said: tuple[str | None, ...] = ()
    if data.captions:
        said = captions.load_captions(
            entry.data_path,
            [image.name for image in images],
            word,
            lambda text: not {*own}.isdisjoint(tokenizer.encode(text)),
        )
        tokenizer([caption for caption in said if caption], padding=0)
    return dataclasses.replace(concept, images=images, prompts=prompts, captions=said)


def fingerprint(found: list[TrainingConcept]) -> str:
    """Return a hash that tells whether the same images are shown with the same prompts and captions."""
    digest = hashlib.sha256()
    for concept in found:
        digest.update(repr((concept.word, concept.prompts, concept.captions)).encode())
        for image in concept.images:
            digest.update(repr((image.name, image.original_size, image.crop_top_left)).encode())
            digest.update(image.pixels.tobytes())
            digest.update(b"" if image.mask is None else image.mask.tobytes())
    return digest.hexdigest()[:16]


def repeats(found: list[TrainingConcept]) -> list[int]:
    """Return how often the images of each word stand in an epoch: as asked, or so that all words have about as many.

    With 5, 6 and 20 images that is 4, 3 and 1: 20, 18 and 20 images.
    """
    most = max(len(concept.images) for concept in found)
    return [
        0 if not concept.images else concept.entry.repeats or max(1, round(most / len(concept.images)))
        for concept in found
    ]


def _ids(entry: Entry, tokenizer: Tokenizer) -> list[int] | None:
    """Return the tokens whose rows to start from, None for random ones."""
    if entry.initializer_token is None:
        return None
    ids = init.token_ids(entry.initializer_token, Tokenizer(tokenizer.context_length))  # knows no learned word
    if len(ids) > entry.num_vectors:
        log.warning(
            "--initializer_token %r has %d tokens, of which --num_vectors %d uses the first %d",
            *(entry.initializer_token, len(ids), entry.num_vectors, entry.num_vectors),
        )
    return ids


def _start(entry: Entry, model: ModelConfig) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the rows of `--initializer_file`; UserError if it is another model's, or there is a word to start from."""
    if entry.initializer_file is None:
        return None
    if entry.initializer_token is not None:
        raise UserError("--initializer_file and --initializer_token both say where to start; give one of them")
    found = embedding_io.load(entry.initializer_file)
    check_dims(found, model)
    if found.num_vectors > entry.num_vectors:
        log.warning(
            "--initializer_file %s has %d rows, of which --num_vectors %d uses the first %d",
            *(entry.initializer_file, found.num_vectors, entry.num_vectors, entry.num_vectors),
        )
    return found.vectors["clip_l"], found.vectors["clip_g"]
