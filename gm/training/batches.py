"""What each step shows: a batch as a pure function of the step's number."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mindspore import Tensor

from gm.data.latent_cache import LatentCache
from gm.diffusion import denoiser, losses, schedule
from gm.runtime import rng
from gm.text.tokenizer import END, START, pool_positions
from gm.training import batch_sampler, concept_data
from gm.training.batch_sampler import PromptChoice, Sample
from gm.training.setup import TrainingSetup
from gm.training.train_step import NegativePrompt


class Batch(NamedTuple):
    """What one step shows: B images at one noise level each, with their prompts."""

    x: Tensor  # network input, float32 [B, z, h, w]
    noise: Tensor  # what the network should find in it, float32 [B, z, h, w]
    weight: Tensor  # of each place's error, float32 [B, 1, h, w]
    timestep: Tensor  # float32 [B]
    ids_1: Tensor  # int32 [B, 77]
    ids_2: Tensor  # int32 [B, 77]
    pool_position: Tensor  # int32 [B]
    sizes: Tensor  # float32 [B, 6]


class BatchLoader:
    """Makes batches from a plan and its latents, for one rank of `world`."""

    def __init__(self, plan: TrainingSetup, latents: LatentCache, rank: int = 0, world: int = 1) -> None:
        config = plan.config
        self.latents, self.rank, self.world = latents, rank, world
        self.seed, self.batch_size, self.flip = (
            config.training.seed,
            config.training.train_batch_size,
            config.data.random_flip,
        )
        self.sigmas = schedule.training_sigmas(config.model.schedule)
        loss = config.loss
        self.weights = losses.min_snr_weights(self.sigmas, loss.min_snr_gamma)
        self.levels = (loss.min_timestep, len(self.sigmas) if loss.max_timestep is None else loss.max_timestep + 1)
        self.bias, self.offset, self.guidance = loss.timestep_bias, loss.noise_offset, loss.negative_guidance
        shapes = [mean.shape for mean in latents.mean]
        counts = concept_data.repeats(plan.concepts)
        # The number of each image's lesson.
        self.owners = [k for k, concept in enumerate(plan.concepts) for _ in concept.images]
        order = [k for k, owner in enumerate(self.owners) for _ in range(counts[owner])]
        self.buckets = [[k for k in order if shapes[k] == shape] for shape in dict.fromkeys(shapes)]
        texts, self.prompts = _prompts(plan)
        self.ids_1 = plan.tokenizer(texts, padding=END)
        self.ids_2 = plan.tokenizer(texts, padding=0)
        self.pool_positions = pool_positions(self.ids_2, config.run.pooling)
        # The words beside the new one. Not all of the table: what a model never met may have rows of any length.
        self.words = sorted({*self.ids_1.ravel().tolist()} & {*range(START)}) or list(range(START))
        self.negative = None if plan.negative is None else _negative(plan, plan.negative.word)

    def batch(self, step: int) -> Batch:
        """Return the batch of step `step`, counted from 0."""
        samples = batch_sampler.samples(
            step,
            seed=self.seed,
            batch=self.batch_size,
            rank=self.rank,
            world=self.world,
            buckets=self.buckets,
            prompts=self.prompts,
            levels=self.levels,
            bias=self.bias,
            flip=self.flip,
        )
        return self.assemble(samples, self.seed, "training")

    def assemble(self, samples: list[Sample], seed: int, purpose: str, plain: bool = False) -> Batch:
        """Return the batch that shows `samples`; noise is drawn for (seed, purpose, each sample's index).

        A `plain` one weighs every level alike and has no offset in its noise, whatever the config asks for.
        """
        offset = 0.0 if plain else self.offset
        x, noise = zip(*[self._noised(sample, seed, purpose, offset) for sample in samples], strict=True)
        weights = [self._weight(sample, plain) for sample in samples]
        prompts = [sample.prompt for sample in samples]
        sizes = [self.latents.size_conditioning[sample.image, int(sample.mirrored)] for sample in samples]
        return Batch(
            Tensor(np.stack(x)),
            Tensor(np.stack(noise)),
            Tensor(np.stack(weights)),
            Tensor(np.asarray([sample.timestep for sample in samples], np.float32)),
            Tensor(self.ids_1[prompts]),
            Tensor(self.ids_2[prompts]),
            Tensor(self.pool_positions[prompts]),
            Tensor(np.stack(sizes)),
        )

    def _weight(self, sample: Sample, plain: bool) -> np.ndarray:
        """Return how much the error at each place counts, float32 [1, h, w]; a mask counts in a plain batch, too."""
        level = 1.0 if plain else self.weights[sample.timestep]
        shape = (1, *self.latents.mean[sample.image].shape[2:])
        if self.latents.loss_weights is None:
            return np.full(shape, level, np.float32)
        weights = self.latents.loss_weights[sample.image][int(sample.mirrored)]
        return (level * weights).astype(np.float32).reshape(shape)

    def _noised(self, sample: Sample, seed: int, purpose: str, offset: float) -> tuple[np.ndarray, np.ndarray]:
        shape = self.latents.mean[sample.image].shape[1:]
        posterior = rng.normal(shape, seed, f"{purpose} posterior", sample.index)
        noise = rng.normal(shape, seed, f"{purpose} noise", sample.index)
        if offset:
            brightness = rng.normal((shape[0], 1, 1), seed, f"{purpose} noise offset", sample.index)
            noise = noise + np.float32(offset) * brightness
        sigma = np.float32(self.sigmas[sample.timestep])
        clean = self.latents.sample(sample.image, int(sample.mirrored), posterior)
        return denoiser.scale_model_input(denoiser.add_noise(clean, noise, sigma), sigma), noise


def _prompts(plan: TrainingSetup) -> tuple[list[str], list[PromptChoice]]:
    """Return all prompts, of each word its templates, its captions and itself alone, and every image's among them."""
    data = plan.config.data
    texts: list[str] = []
    choices = []
    for concept in plan.concepts:
        templates = range(len(texts), len(texts) + len(concept.prompts))
        texts += concept.prompts
        numbers: list[int | None] = []
        for caption in concept.captions or [None] * len(concept.images):
            numbers.append(None if caption is None else len(texts))
            texts += [caption] if caption is not None else []
        texts.append(concept.word)
        alone = len(texts) - 1
        choices += [
            PromptChoice(templates, k, alone, data.template_probability, data.caption_dropout_rate) for k in numbers
        ]
    return texts, choices


def _negative(plan: TrainingSetup, word: str) -> NegativePrompt:
    ids_2 = plan.tokenizer([word], padding=0)
    return NegativePrompt(plan.tokenizer([word], padding=END), ids_2, pool_positions(ids_2, plan.config.run.pooling))
