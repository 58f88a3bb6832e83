"""Everything about a training run that can be found wrong before the weights are read or a file is written."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from dataclasses import dataclass, field

from gm.config import Config, SamplingConfig
from gm.data import bucketing, templates
from gm.data.image import CroppedImage
from gm.errors import UserError
from gm.runtime import atomic_io
from gm.sampling import prompt_file, resolution
from gm.text.tokenizer import Tokenizer
from gm.training import checkpoint, concept_data
from gm.training.checkpoint import Checkpoint
from gm.training.concept_data import Entry, TrainingConcept

log = logging.getLogger("gm")


@dataclass(frozen=True)
class TrainingSetup:
    """The checked ingredients of a run."""

    config: Config
    concepts: list[TrainingConcept]  # each word; a negative one comes last
    previews: list[SamplingConfig]  # a prompt each, with the placeholder filled in
    tokenizer: Tokenizer  # knows all the words
    shown: str = ""  # a hash of what there is to see and to read
    resumed: Checkpoint | None = None  # what to go on from
    changed: dict[str, str] = field(default_factory=dict)  # options that differ from those it was made with

    @property
    def updates(self) -> int:
        """How many updates the run makes; steps left over at the end make one more."""
        training = self.config.training
        return -(-training.total_step // training.gradient_accumulation_steps)

    @property
    def images(self) -> list[CroppedImage]:
        """The images of all words, one word's after another's."""
        return [image for concept in self.concepts for image in concept.images]

    @property
    def negative(self) -> TrainingConcept | None:
        """The word that is learned as what to keep away from, if there is one."""
        return next((concept for concept in self.concepts if concept.entry.negative), None)


def prepare(config: Config) -> TrainingSetup:
    """Read images and prompts; UserError names the first thing that is wrong with them or with the model."""
    config.model.require("base")
    entries = concept_data.entries(config)
    config = concept_data.resolved(config, entries)
    _check_levels(config)
    if config.training.optimizer == "prodigy" and config.training.learning_rate < 0.1:
        log.warning(
            "--optimizer prodigy finds the learning rate itself and multiplies it by --learning_rate %g; 1 is usual",
            config.training.learning_rate,
        )
    atomic_io.check_writable(config.training.save_path, "--save_path")
    resumed = checkpoint.find(config.training.resume, config.training.save_path)
    changed = {} if resumed is None else checkpoint.check(resumed, config)
    for name, change in changed.items():
        log.warning("--resume: %s was %s from here on", name, change)
    tokenizer = Tokenizer(config.model.text_encoder_1.context_length)
    for entry in entries:
        tokenizer.add_placeholder(entry.placeholder_token, entry.num_vectors)
    previews = _previews(config, entries, tokenizer)
    data = config.data
    known = _sizes(data.resolution or config.model.resolution, data.bucket_reso_steps) if data.enable_bucket else None
    named = zip(entries, concept_data.names(entries), strict=True)
    read = [concept_data.read(entry, name, config, tokenizer, known) for entry, name in named]
    shown = concept_data.fingerprint(read)
    before = shown if resumed is None else resumed.notes.get("shown", shown)
    if before != shown:
        log.warning("--resume: images, captions or templates are others than before, from here on")
        changed["images, captions or templates"] = f"{before} → {shown}"
    plan = TrainingSetup(config, read, previews, tokenizer, shown, resumed, changed)
    if known:
        shapes = Counter("×".join(map(str, image.pixels.shape[1:])) for image in plan.images)
        log.info("height × width: %s", ", ".join(f"{count} of {shape}" for shape, count in shapes.items()))
    return plan


def _sizes(resolution: int, step: int) -> list[bucketing.Size]:
    known = bucketing.make_bucket_resolutions(resolution, step)
    if not known:
        raise UserError(f"--bucket_reso_steps {step} is too large for --resolution {resolution}; there is no such size")
    return known


def _previews(config: Config, entries: list[Entry], tokenizer: Tokenizer) -> list[SamplingConfig]:
    """Return what previews draw: a prompt with `{}` of each word; UserError for one without any word of the run.

    A negative word is their negative prompt where they have no other. They are drawn from noise, without a refiner.
    """
    training, sampling = config.training, config.sampling
    negative = next((entry.placeholder_token for entry in entries if entry.negative), "")
    sampling = dataclasses.replace(
        sampling, negative_prompt=sampling.negative_prompt or negative, task="txt2img", add_pipeline=False
    )
    wanted = [("--infer_prompt", training.infer_prompt)] if training.infer_prompt else []
    for text in training.validation_prompts:
        wanted += [("--validation_prompts", line) for line in prompt_file.read(text, "--validation_prompts")]
    previews = []
    shown = [entry for entry in entries if not entry.negative]
    words = [entry.placeholder_token for entry in shown]
    firsts = [(entry, templates.load(entry.learnable_property, entry.template_file)[0]) for entry in shown]
    filled = [("the first template", templates.fill(line, entry.placeholder_token)) for entry, line in firsts]
    if wanted:
        filled = [(option, templates.fill(line, word)) for option, line in wanted for word in words]
    own = {number for word in words for number in tokenizer.placeholders[word]}
    for option, line in dict.fromkeys(filled):
        parsed = dataclasses.replace(sampling, **prompt_file.parse(line))
        if own.isdisjoint(tokenizer.encode(parsed.prompt)):
            raise UserError(f"{option} {parsed.prompt!r} holds neither {{}} nor {' nor '.join(words)}; add one")
        resolution.from_options(parsed, config.model)
        previews.append(parsed)
    return previews


def _check_levels(config: Config) -> None:
    low, high, last = config.loss.min_timestep, config.loss.max_timestep, config.model.schedule.timesteps - 1
    high = last if high is None else high
    if not low <= high <= last:
        raise UserError(
            f"--min_timestep {low} and --max_timestep {high} leave no noise level; the model's are 0 to {last}"
        )
