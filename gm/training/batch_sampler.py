"""Batch sampler: images, prompts and timesteps of each step, a pure function of the step without any state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gm.runtime import rng


@dataclass(frozen=True)
class Sample:
    """One element of a batch.

    image: index of the image; flipped: whether it is flipped horizontally; prompt: index of the prompt;
    timestep: index of the noise level; index: number of the sample in the run, from 0
    """

    image: int
    flipped: bool
    prompt: int
    timestep: int
    index: int


@dataclass(frozen=True)
class PromptChoice:
    """The prompts of one image, by index.

    templates: prompts for any image of the concept; captions: those of the image, alternatives; token_alone: the
    placeholder token alone; template_probability: probability of a template instead of a caption; dropout:
    probability of the placeholder token alone
    """

    templates: range
    captions: Sequence[int] = ()
    token_alone: int = 0
    template_probability: float = 0.0
    dropout: float = 0.0

    def choose(self, seed: int, index: int) -> int:
        """Return the prompt of sample `index`."""
        if self.captions or self.dropout:
            u = float(rng.generator(seed, "prompt", index).random())
            if u < self.dropout:
                return self.token_alone
            if self.captions and u >= self.dropout + (1.0 - self.dropout) * self.template_probability:
                return self.captions[rng.integer(len(self.captions), seed, "caption", index)]
        return self.templates[rng.integer(len(self.templates), seed, "template", index)]


def samples(
    step: int,
    *,
    seed: int,
    batch: int,
    rank: int,
    world: int,
    buckets: Sequence[Sequence[int]],
    prompts: Sequence[PromptChoice],
    timesteps: tuple[int, int],
    bias: float = 0.0,
    flip: bool,
) -> list[Sample]:
    """Return the `batch` samples of `rank` of `world` in `step` (from 0).

    `buckets` are the indices of the images of one shape each, repeated images several times. All ranks use the same
    bucket in a step. Of as many steps as there are images, each bucket has as many as it has images, so that all images
    are used equally often. `prompts` are those of each image.

    Samples are numbered through the run, rank after rank, so two ranks with one image each use what one rank uses with
    two. Those of a bucket form epochs, each a permutation of its images; a batch may reach into the next epoch.
    Timesteps are uniform from `timesteps[0]` to below `timesteps[1]`; a `bias` above 0 favors high ones, below 0 low.
    """
    bucket, earlier_steps = _bucket(step, [len(bucket) for bucket in buckets], seed)
    images = buckets[bucket]
    stream = (bucket,) if len(buckets) > 1 else ()
    first = (step * world + rank) * batch
    first_of_bucket = (earlier_steps * world + rank) * batch
    batch_samples = []
    for index in range(first, first + batch):
        epoch, position = divmod(first_of_bucket + index - first, len(images))
        image = images[int(rng.permutation(len(images), seed, "order", epoch, *stream)[position])]
        batch_samples.append(
            Sample(
                image=image,
                flipped=flip and rng.integer(2, seed, "mirror", index) == 1,
                prompt=prompts[image].choose(seed, index),
                timestep=_timestep(timesteps, bias, seed, index),
                index=index,
            )
        )
    return batch_samples


def _bucket(step: int, sizes: list[int], seed: int) -> tuple[int, int]:
    """Return the bucket of `step` and the number of earlier steps of that bucket; `sizes` are their image counts."""
    if len(sizes) == 1:
        return 0, step
    era, position = divmod(step, sum(sizes))
    order = np.repeat(np.arange(len(sizes)), sizes)[rng.permutation(sum(sizes), seed, "buckets", era)]
    bucket = int(order[position])
    return bucket, era * sizes[bucket] + int((order[:position] == bucket).sum())


def _timestep(timesteps: tuple[int, int], bias: float, seed: int, index: int) -> int:
    low, high = timesteps
    if not bias:
        return low + rng.integer(high - low, seed, "timestep", index)
    u = rng.generator(seed, "timestep", index).random() ** math.exp(-bias)
    return low + min(int(u * (high - low)), high - low - 1)
