"""Batches: a pure function of the step, so that a resumed run needs no state of its data."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from gm.data.latent_cache import LatentCache
from gm.diffusion import denoiser, losses, schedule
from gm.runtime import rng
from gm.text.tokenizer import END, START, pool_positions
from gm.training import batch_sampler, concept_data
from gm.training.batch_sampler import PromptChoice, Sample
from gm.training.setup import TrainingSetup
from gm.training.train_step import Batch, NegativePrompt

_PADDING = {"clip_l": END, "clip_g": 0}  # token that fills up a prompt in each text encoder
_POOLED_ENCODER = "clip_g"  # whose hidden state is pooled


class BatchLoader:
    """Makes the batches of one rank of `world` from the setup of a run and its encoded images."""

    def __init__(self, setup: TrainingSetup, latents: LatentCache, rank: int = 0, world: int = 1) -> None:
        config = setup.config
        self.config = config
        self.latents = latents
        self.rank = rank
        self.world = world
        self.sigmas = schedule.training_sigmas(config.model.schedule)
        self.snr_weights = losses.min_snr_weights(self.sigmas, config.loss.min_snr_gamma)
        last = config.loss.max_timestep
        self.timestep_range = (config.loss.min_timestep, len(self.sigmas) if last is None else last + 1)
        self.concept_of_image = [k for k, concept in enumerate(setup.concepts) for _ in concept.images]
        self.buckets = self._buckets(concept_data.repeats(setup.concepts))
        texts, self.prompt_choices = _prompts(setup)
        self.ids = tuple(setup.tokenizer(texts, padding=_PADDING[name]) for name in config.model.text_encoders)
        self.pool_positions = _pool_positions(setup, texts)
        # Tokens of the prompts without the placeholders. The whole table is no substitute: tokens that training data
        # of the model never had may have vectors of any norm.
        self.prompt_tokens = sorted({*self.ids[0].ravel().tolist()} & {*range(START)}) or list(range(START))
        self.negative = None if setup.negative is None else _negative_prompt(setup, setup.negative.placeholder_token)

    def batch(self, step: int) -> Batch:
        """Return the batch of `step`, counted from 0."""
        training = self.config.training
        samples = batch_sampler.samples(
            step,
            seed=training.seed,
            batch=training.train_batch_size,
            rank=self.rank,
            world=self.world,
            buckets=self.buckets,
            prompts=self.prompt_choices,
            timesteps=self.timestep_range,
            bias=self.config.loss.timestep_bias,
            flip=self.config.data.random_flip,
        )
        return self.assemble(samples, "training")

    def assemble(self, samples: list[Sample], stream: str, plain: bool = False) -> Batch:
        """Return the batch of `samples`; noise is a function of (seed, `stream`, index of the sample).

        With `plain`, all timesteps have the same loss weight and the noise has no offset, whatever the config says.
        """
        noise_offset = 0.0 if plain else self.config.loss.noise_offset
        noised = [self._noised_latents(sample, stream, noise_offset) for sample in samples]
        prompts = [sample.prompt for sample in samples]
        sizes = [self.latents.size_conditioning[sample.image, int(sample.flipped)] for sample in samples]
        return Batch(
            x=Tensor(np.stack([x for x, _ in noised])),
            noise=Tensor(np.stack([noise for _, noise in noised])),
            loss_weight=Tensor(np.stack([self._loss_weight(sample, plain) for sample in samples])),
            timesteps=Tensor(np.asarray([sample.timestep for sample in samples], np.float32)),
            sizes=Tensor(np.stack(sizes)),
            pool_position=Tensor(self.pool_positions[prompts]),
            ids=tuple(Tensor(ids[prompts]) for ids in self.ids),
        )

    def _buckets(self, repeats: list[int]) -> list[list[int]]:
        """Return the images of each latent shape by index, each `repeats` of its concept times."""
        shapes = [mean.shape for mean in self.latents.mean]
        repeated = [image for image, concept in enumerate(self.concept_of_image) for _ in range(repeats[concept])]
        return [[image for image in repeated if shapes[image] == shape] for shape in dict.fromkeys(shapes)]

    def _loss_weight(self, sample: Sample, plain: bool) -> np.ndarray:
        """Return the loss weights, float32 [1, h, w]: those of mask and timestep, with `plain` of the mask alone."""
        level = 1.0 if plain else self.snr_weights[sample.timestep]
        shape = (1, *self.latents.mean[sample.image].shape[2:])
        if self.latents.loss_weights is None:
            return np.full(shape, level, np.float32)
        mask_weights = self.latents.loss_weights[sample.image][int(sample.flipped)]
        return (level * mask_weights).astype(np.float32).reshape(shape)

    def _noised_latents(self, sample: Sample, stream: str, noise_offset: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the scaled UNet input and the noise in it, float32 [z, h, w]."""
        seed = self.config.training.seed
        shape = self.latents.mean[sample.image].shape[1:]
        posterior = rng.normal(shape, seed, f"{stream} posterior", sample.index)
        noise = rng.normal(shape, seed, f"{stream} noise", sample.index)
        if noise_offset:
            offset = rng.normal((shape[0], 1, 1), seed, f"{stream} noise offset", sample.index)
            noise = noise + np.float32(noise_offset) * offset
        sigma = np.float32(self.sigmas[sample.timestep])
        latents = self.latents.sample(sample.image, int(sample.flipped), posterior)
        return denoiser.scale_model_input(denoiser.add_noise(latents, noise, sigma), sigma), noise


def _prompts(setup: TrainingSetup) -> tuple[list[str], list[PromptChoice]]:
    """Return all prompts (templates, captions and placeholder token of each concept) and the choice for each image."""
    data = setup.config.data
    texts: list[str] = []
    choices = []
    for concept in setup.concepts:
        templates = range(len(texts), len(texts) + len(concept.prompts))
        texts += concept.prompts
        captions: list[int | None] = []
        for caption in concept.captions or [None] * len(concept.images):
            captions.append(None if caption is None else len(texts))
            texts += [] if caption is None else [caption]
        token_alone = len(texts)
        texts.append(concept.placeholder_token)
        choices += [
            PromptChoice(templates, caption, token_alone, data.template_probability, data.caption_dropout_rate)
            for caption in captions
        ]
    return texts, choices


def _pool_positions(setup: TrainingSetup, texts: list[str]) -> np.ndarray:
    ids = setup.tokenizer(texts, padding=_PADDING[_POOLED_ENCODER])
    return pool_positions(ids, setup.config.run.pooling)


def _negative_prompt(setup: TrainingSetup, text: str) -> NegativePrompt:
    ids = tuple(setup.tokenizer([text], padding=_PADDING[name]) for name in setup.config.model.text_encoders)
    return NegativePrompt(_pool_positions(setup, [text]), ids)
