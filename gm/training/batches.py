"""Batches: a pure function of the step, so that a resumed run needs no state of its data."""

from __future__ import annotations

import logging

import numpy as np
from mindspore import Tensor

from gm.data.latent_cache import LatentCache
from gm.diffusion import denoiser, losses, schedule
from gm.runtime import rng
from gm.text import chunks
from gm.text.chunks import TokenChunks
from gm.text.tokenizer import START, pool_positions
from gm.training import batch_sampler, concept_data
from gm.training.batch_sampler import PromptChoice, Sample
from gm.training.context_prompts import ContextSampler
from gm.training.setup import TrainingSetup
from gm.training.train_step import Batch, NegativePrompt

log = logging.getLogger("gm")

_MAX_QUOTE = 60  # characters of a prompt in the log


class BatchLoader:
    """Makes the batches of one rank of `world` from the setup of a run and its encoded images."""

    def __init__(
        self,
        setup: TrainingSetup,
        latents: LatentCache,
        rank: int = 0,
        world: int = 1,
        context: ContextSampler | None = None,
    ) -> None:
        config = setup.config
        self.config = config
        self.latents = latents
        self.rank = rank
        self.world = world
        self.context = context
        self.sigmas = schedule.training_sigmas(config.model.schedule)
        self.timestep_weights = losses.timestep_weights(self.sigmas, config.loss, config.model.schedule.prediction)
        last = config.loss.max_timestep
        self.timestep_range = (config.loss.min_timestep, len(self.sigmas) if last is None else last + 1)
        self.concept_of_image = [k for k, concept in enumerate(setup.concepts) for _ in concept.images]
        self.buckets = self._buckets(concept_data.repeats(setup.concepts))
        texts, self.prompt_choices = _prompts(setup)
        encoded = [chunks.encode_literally(text, setup.tokenizer) for text in texts]
        # One number for all, so that one graph serves all steps and a prompt does not depend on its batch.
        self.num_chunks = max(map(len, encoded))
        if self.num_chunks > 1:
            _log_long_prompts(texts, encoded, self.num_chunks)
        self.ids, self.pool_positions = _token_ids(setup, encoded, self.num_chunks)
        # Tokens of the prompts without the placeholders. The whole table is no substitute: tokens that training data
        # of the model never had may have vectors of any norm.
        self.prompt_tokens = sorted({*self.ids[0].ravel().tolist()} & {*range(START)}) or list(range(START))
        self.negative: NegativePrompt | None = None
        if setup.negative is not None:
            prompt = chunks.encode_literally(setup.negative.placeholder_token, setup.tokenizer)
            ids, pool_position = _token_ids(setup, [prompt], self.num_chunks)
            self.negative = NegativePrompt(pool_position, ids)

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
        batch = self.assemble(samples, "training")
        if self.context is None:
            return batch
        return batch._replace(context=self.context.inputs([sample.index for sample in samples]))

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
            target=Tensor(np.stack([target for _, target in noised])),
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
        level = 1.0 if plain else self.timestep_weights[sample.timestep]
        shape = (1, *self.latents.mean[sample.image].shape[2:])
        if self.latents.loss_weights is None:
            return np.full(shape, level, np.float32)
        mask_weights = self.latents.loss_weights[sample.image][int(sample.flipped)]
        return (level * mask_weights).astype(np.float32).reshape(shape)

    def _noised_latents(self, sample: Sample, stream: str, noise_offset: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the scaled UNet input and the target of its prediction, float32 [z, h, w]."""
        seed = self.config.training.seed
        shape = self.latents.mean[sample.image].shape[1:]
        posterior = rng.normal(shape, seed, f"{stream} posterior", sample.index)
        noise = rng.normal(shape, seed, f"{stream} noise", sample.index)
        if noise_offset:
            offset = rng.normal((shape[0], 1, 1), seed, f"{stream} noise offset", sample.index)
            noise = noise + np.float32(noise_offset) * offset
        sigma = np.float32(self.sigmas[sample.timestep])
        latents = self.latents.sample(sample.image, int(sample.flipped), posterior)
        target = denoiser.training_target(latents, noise, sigma, self.config.model.schedule.prediction)
        return denoiser.training_input(latents, noise, sigma), target


def _prompts(setup: TrainingSetup) -> tuple[list[str], list[PromptChoice]]:
    """Return all prompts (templates, captions and placeholder token of each concept) and the choice for each image."""
    data = setup.config.data
    texts: list[str] = []
    choices = []
    for concept in setup.concepts:
        templates = range(len(texts), len(texts) + len(concept.prompts))
        texts += concept.prompts
        captions: list[range] = []
        for each in concept.captions or [()] * len(concept.images):
            captions.append(range(len(texts), len(texts) + len(each)))
            texts += each
        token_alone = len(texts)
        texts.append(concept.placeholder_token)
        choices += [
            PromptChoice(templates, each, token_alone, data.template_probability, data.caption_dropout_rate)
            for each in captions
        ]
    return texts, choices


def _token_ids(
    setup: TrainingSetup, prompts: list[TokenChunks], count: int
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Return the ids of N prompts for each text encoder, int32 [N, 77] or, of `count` chunks each, [N, count, 77].

    Shorter prompts get empty chunks. The second result is the pooled position in the first chunk, int32 [N].
    """
    length = setup.tokenizer.context_length
    padded = [chunk for prompt in prompts for chunk in chunks.pad_chunks(prompt, count)]
    ids, _ = chunks.to_arrays(padded, length)
    shape = (len(prompts), length) if count == 1 else (len(prompts), count, length)
    encoders = list(setup.config.model.text_encoders)
    positions = pool_positions(ids[encoders[-1]][::count], setup.config.run.pooling)  # the last one's state is pooled
    return tuple(ids[name].reshape(shape) for name in encoders), positions


def _log_long_prompts(texts: list[str], encoded: list[TokenChunks], count: int) -> None:
    long = [text for text, prompt in zip(texts, encoded, strict=True) if len(prompt) == count]
    log.info(
        "%d prompts need %d chunks of tokens, such as %r; all prompts of the run get as many, empty ones at their end",
        len(long),
        count,
        long[0] if len(long[0]) <= _MAX_QUOTE else long[0][:_MAX_QUOTE] + "…",
    )
