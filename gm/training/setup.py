"""Setup of a training run: everything that can be checked before the weights are loaded or a file is written."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from gm.config import ConceptConfig, Config, SamplingConfig, family_options
from gm.config.model import ModelConfig
from gm.data import bucketing, templates
from gm.data.image import CroppedImage
from gm.embeddings.embedding import NO_POOLING, Embedding
from gm.errors import UserError
from gm.lora import files as lora_files
from gm.lora.files import LoraRecord
from gm.runtime import atomic_io
from gm.sampling import adjusted_embeddings, prompt_file, resolution
from gm.text.tokenizer import Tokenizer
from gm.training import (
    checkpoint,
    concept_data,
    context_prompts,
    full_pipeline,
    learned_embeds,
    optimizer_options,
    option_checks,
)
from gm.training.checkpoint import Checkpoint
from gm.training.concept_data import TrainingConcept
from gm.training.context_prompts import ContextPrompt

log = logging.getLogger("gm")


@dataclass(frozen=True)
class TrainingSetup:
    """A checked run: options, training data and the checkpoint to resume from."""

    config: Config
    concepts: list[TrainingConcept]  # the negative one last
    sample_requests: list[SamplingConfig]  # of the sample images, one per prompt
    tokenizer: Tokenizer  # with all placeholder tokens
    data_fingerprint: str = ""  # hash of images, prompts and captions
    resume_from: Checkpoint | None = None
    changed_options: dict[str, str] = field(default_factory=dict)  # since that checkpoint, as "old → new"
    loras: list[LoraRecord] = field(default_factory=list)  # merged into the frozen weights
    context_prompts: list[ContextPrompt] = field(default_factory=list)  # of the context loss, if it has a weight

    @property
    def num_updates(self) -> int:
        """Optimizer updates of the run; the steps left over at the end make one more."""
        training = self.config.training
        return -(-training.total_step // training.gradient_accumulation_steps)

    @property
    def images(self) -> list[CroppedImage]:
        """The images of all concepts, concept after concept."""
        return [image for concept in self.concepts for image in concept.images]

    @property
    def negative(self) -> TrainingConcept | None:
        """The negative concept, if any."""
        return next((concept for concept in self.concepts if concept.config.negative), None)


def prepare(config: Config) -> TrainingSetup:
    """Read and check the training data and the options; UserError names the first mistake."""
    config.model.require("base")
    family_options.check_training(config.model, config.training)
    family_options.check_sampling(config.model, config.sampling)
    _check_timesteps(config)
    optimizer_options.check(config.training, config.model.text_encoders)
    atomic_io.check_writable(config.training.save_path, "--save_path")
    loras = lora_files.read_records(config.run.lora_weight)
    resume_from, changed_options = _checkpoint(config, loras)
    concept_configs = concept_data.concept_configs(config)
    learned_embeds.check_output_name(config.training.output_name, len(concept_configs))
    tokenizer = Tokenizer(config.model.context_length)
    for concept in concept_configs:
        tokenizer.add_placeholder(concept.placeholder_token, concept.num_vectors)
    if config.training.save_as_full_pipeline:
        full_pipeline.check(config, concept_configs)
    sample_requests = _sample_requests(config, concept_configs, tokenizer)
    bucket_sizes = _bucket_sizes(config) if config.data.enable_bucket else None
    concepts = [
        concept_data.read(concept, stem, config, tokenizer, bucket_sizes)
        for concept, stem in zip(concept_configs, concept_data.file_stems(concept_configs), strict=True)
    ]
    prompts = context_prompts.read(config, concept_configs)
    fingerprint = concept_data.fingerprint(concepts, [prompt.text for prompt in prompts])
    if resume_from and resume_from.data_fingerprint not in ("", fingerprint):
        log.warning("--resume: images, captions or templates have changed")
        changed_options["images, captions or templates"] = f"{resume_from.data_fingerprint} → {fingerprint}"
    setup = TrainingSetup(
        config, concepts, sample_requests, tokenizer, fingerprint, resume_from, changed_options, loras, prompts
    )
    _log_ineffective_options(setup)
    if bucket_sizes:
        sizes = Counter("×".join(map(str, image.pixels.shape[1:])) for image in setup.images)
        log.info("height × width: %s", ", ".join(f"{count} of {size}" for size, count in sizes.items()))
    return setup


def _checkpoint(config: Config, loras: list[LoraRecord]) -> tuple[Checkpoint | None, dict[str, str]]:
    """Return the checkpoint to resume from, if any, and the options that have changed since."""
    resume_from = checkpoint.find(config.training.resume, config.training.save_path)
    if resume_from is None:
        return None, {}
    changed_options = checkpoint.check(resume_from, config, loras)
    for name, change in changed_options.items():
        log.warning("--resume: %s has changed: %s", name, change)
    return resume_from, changed_options


def _bucket_sizes(config: Config) -> list[bucketing.Size]:
    side = config.data.resolution or config.model.resolution
    step = config.data.bucket_reso_steps
    sizes = bucketing.make_bucket_resolutions(side, step)
    if not sizes:
        raise UserError(f"--bucket_reso_steps {step} is too large for --resolution {side}; there is no such size")
    return sizes


def _sample_requests(config: Config, concepts: list[ConceptConfig], tokenizer: Tokenizer) -> list[SamplingConfig]:
    """Return the options of the sample images of each prompt: every prompt with `{}`, for every concept.

    They are generated from noise without a refiner; a negative concept is their default negative prompt. UserError for
    a prompt without a placeholder token of the run.
    """
    sampling = config.sampling
    negative_tokens = [concept.placeholder_token for concept in concepts if concept.negative]
    tokens = [concept.placeholder_token for concept in concepts if not concept.negative]
    sampling = dataclasses.replace(
        sampling,
        negative_prompt=sampling.negative_prompt or "".join(negative_tokens),
        task="txt2img",
        add_pipeline=False,
    )
    placeholder_ids = {number for token in tokens for number in tokenizer.placeholders[token]}
    requests = []
    for option, line in dict.fromkeys(_sample_prompts(config, concepts)):
        request = dataclasses.replace(sampling, **prompt_file.parse(line))
        if placeholder_ids.isdisjoint(tokenizer.encode(request.prompt)):
            raise UserError(f"{option} {request.prompt!r} holds neither {{}} nor {' nor '.join(tokens)}; add one")
        resolution.from_options(request, config.model)
        requests.append(request)
    if config.training.infer_during_train:
        adjusted_embeddings.load([_untrained(each, config.model) for each in concepts], requests, config.model)
    return requests


def _untrained(concept: ConceptConfig, model: ModelConfig) -> Embedding:
    """Return an embedding of zeros with the metadata of the concept, to check requests with."""
    shapes = {name: (concept.num_vectors, encoder.width) for name, encoder in model.text_encoders.items()}
    vectors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    pooling = "end_of_text" if model.has_class_embedding else NO_POOLING
    metadata = {"recipe": {"concept": dataclasses.asdict(concept)}}
    return Embedding(concept.placeholder_token, vectors, pooling, metadata)


def _sample_prompts(config: Config, concepts: list[ConceptConfig]) -> list[tuple[str, str]]:
    """Return the prompts of sample images with the options they come from, placeholder tokens filled in."""
    training = config.training
    positive = [concept for concept in concepts if not concept.negative]
    lines = [("--infer_prompt", training.infer_prompt)] if training.infer_prompt else []
    for text in training.validation_prompts:
        lines += [("--validation_prompts", line) for line in prompt_file.read(text, "--validation_prompts")]
    if lines:
        return [(option, _filled(line, concept)) for option, line in lines for concept in positive]
    return [
        ("the first template", _filled(templates.load(each.learnable_property, each.template_file)[0], each))
        for each in positive
    ]


def _filled(line: str, concept: ConceptConfig) -> str:
    return templates.fill(line, concept.placeholder_token, concept.class_word)


def _log_ineffective_options(setup: TrainingSetup) -> None:
    has_masks = any(image.mask is not None for image in setup.images)
    has_captions = any(any(concept.captions) for concept in setup.concepts)
    for message in option_checks.ineffective_options(setup.config, setup.num_updates, has_masks, has_captions):
        log.warning("%s", message)


def _check_timesteps(config: Config) -> None:
    last = config.model.schedule.timesteps - 1
    low = config.loss.min_timestep
    high = last if config.loss.max_timestep is None else config.loss.max_timestep
    if not low <= high <= last:
        raise UserError(f"--min_timestep {low} and --max_timestep {high} leave no timestep; the model has 0 to {last}")
