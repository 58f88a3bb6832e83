"""Everything about a training run that can be found wrong before the weights are read or a file is written."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from gm import atomic
from gm.concepts import files, initial
from gm.concepts.concept import words
from gm.config import Config, SamplingConfig
from gm.data import buckets, captions, folder, templates
from gm.data.folder import Picture
from gm.errors import UserError
from gm.generation import lines, sizes
from gm.text.tokenizer import Tokenizer
from gm.training import state
from gm.training.state import State

log = logging.getLogger("gm")


@dataclass(frozen=True)
class Plan:
    """The checked ingredients of a run."""

    config: Config
    pictures: list[Picture]
    prompts: tuple[str, ...]  # templates with the placeholder filled in
    previews: list[SamplingConfig]  # a prompt each, with the placeholder filled in
    tokenizer: Tokenizer  # knows the placeholder
    initial_ids: list[int] | None  # tokens whose rows to start from, or None for random rows
    initial_rows: tuple[np.ndarray, np.ndarray] | None = None  # of a learned file to start from, instead
    captions: tuple[str | None, ...] = ()  # of each picture, filled in, or none at all
    resumed: State | None = None  # what to go on from
    changed: dict[str, str] = field(default_factory=dict)  # options that differ from those it was made with

    @property
    def updates(self) -> int:
        """How many updates the run makes; steps left over at the end make one more."""
        training = self.config.training
        return -(-training.total_step // training.gradient_accumulation_steps)


def make(config: Config) -> Plan:
    """Read pictures and prompts; UserError names the first thing that is wrong with them."""
    concept = config.concept
    _check_levels(config)
    if config.training.optimizer == "prodigy" and config.training.learning_rate < 0.1:
        log.warning(
            "--optimizer prodigy finds the learning rate itself and multiplies it by --learning_rate %g; 1 is usual",
            config.training.learning_rate,
        )
    atomic.check_folder(config.training.save_path, "--save_path")
    resumed = state.find(config.training.resume, config.training.save_path)
    changed = {} if resumed is None else state.check(resumed, config)
    for name, change in changed.items():
        log.warning("--resume: %s was %s from here on", name, change)
    tokenizer = Tokenizer(config.model.text_encoder_1.positions)
    ids = None if concept.initializer_token is None else initial.token_ids(concept.initializer_token, tokenizer)
    if ids and len(ids) > concept.num_vectors:
        log.warning(
            "--initializer_token %r has %d tokens, of which --num_vectors %d uses the first %d",
            *(concept.initializer_token, len(ids), concept.num_vectors, concept.num_vectors),
        )
    tokenizer.add_placeholder(concept.placeholder_token, concept.num_vectors)
    templates_ = templates.load(concept.learnable_property, concept.template_file)
    prompts = tuple(templates.fill(line, concept.placeholder_token) for line in templates_)
    own = {*tokenizer.placeholders[concept.placeholder_token]}
    holds = lambda text: bool(own & {*tokenizer.encode(text)})  # noqa: E731
    previews = _previews(config, templates_[0], holds)
    texts = [text for sampling in previews for text in (sampling.prompt, sampling.negative_prompt)]
    tokenizer([*prompts, *texts], padding=0)  # finds a prompt that has no room for the placeholder
    data = config.data
    resolution = data.resolution or config.model.resolution
    known = _sizes(resolution, data.bucket_step) if data.buckets else None
    pictures = folder.read(data.data_path, resolution, data.masks, known)
    if known:
        shapes = Counter("×".join(map(str, picture.pixels.shape[1:])) for picture in pictures)
        log.info("height × width: %s", ", ".join(f"{count} of {shape}" for shape, count in shapes.items()))
    said: tuple[str | None, ...] = ()
    if data.captions:
        names = [picture.name for picture in pictures]
        said = captions.read(data.data_path, names, concept.placeholder_token, holds)
        tokenizer([caption for caption in said if caption], padding=0)
    return Plan(config, pictures, prompts, previews, tokenizer, ids, _initial_rows(config), said, resumed, changed)


def _sizes(resolution: int, step: int) -> list[buckets.Size]:
    known = buckets.sizes(resolution, step)
    if not known:
        raise UserError(f"--bucket_step {step} is too large for --resolution {resolution}; there is no such size")
    return known


def _previews(config: Config, template: str, holds: Callable[[str], bool]) -> list[SamplingConfig]:
    """Return what previews draw; UserError for a prompt without the new word, as `holds` tells."""
    training, word = config.training, config.concept.placeholder_token
    wanted = [("--infer_prompt", training.infer_prompt)] if training.infer_prompt else []
    for text in training.validation_prompts:
        wanted += [("--validation_prompts", line) for line in lines.read(text, "--validation_prompts")]
    previews = []
    for option, line in wanted or [("the first template", template)]:
        sampling = lines.parse(templates.fill(line, word), config.sampling)
        if not holds(sampling.prompt):
            raise UserError(f"{option} {sampling.prompt!r} holds neither {{}} nor {word}; add one")
        sizes.frame(sampling, config.model)
        previews.append(sampling)
    return previews


def _initial_rows(config: Config) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the rows of `--initializer_file`; UserError if it is another model's, or there is a word to start from."""
    concept, model = config.concept, config.model
    if concept.initializer_file is None:
        return None
    if concept.initializer_token is not None:
        raise UserError("--initializer_file and --initializer_token both say where to start; give one of them")
    found = files.load(concept.initializer_file)
    words([found], model)
    if found.num_vectors > concept.num_vectors:
        log.warning(
            "--initializer_file %s has %d rows, of which --num_vectors %d uses the first %d",
            *(concept.initializer_file, found.num_vectors, concept.num_vectors, concept.num_vectors),
        )
    return found.rows_1, found.rows_2


def _check_levels(config: Config) -> None:
    low, high, last = config.loss.timestep_min, config.loss.timestep_max, config.model.schedule.timesteps - 1
    high = last if high is None else high
    if not low <= high <= last:
        raise UserError(
            f"--timestep_min {low} and --timestep_max {high} leave no noise level; the model's are 0 to {last}"
        )
