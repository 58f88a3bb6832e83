"""Which images, prompts and noise levels each step shows: a pure function of the step, so nothing need be saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gm.runtime import rng


@dataclass(frozen=True)
class Sample:
    """One thing shown to the model.

    image: number of the image; mirrored: whether it is flipped; prompt: number of the prompt;
    timestep: number of the noise level; index: number of this sample in the whole run, from 0
    """

    image: int
    mirrored: bool
    prompt: int
    timestep: int
    index: int


@dataclass(frozen=True)
class PromptChoice:
    """The prompts to choose from for one image, by number.

    templates: those for any image; caption: the image's own, if it has one; alone: the new word alone;
    template_probability: how often a template stands in for a caption; dropout: how often the word alone does
    """

    templates: range
    caption: int | None = None
    alone: int = 0
    template_probability: float = 0.0
    dropout: float = 0.0

    def choose(self, seed: int, index: int) -> int:
        """Return the number of the prompt that sample `index` shows the image with."""
        if self.caption is not None or self.dropout:
            place = float(rng.generator(seed, "prompt", index).random())
            if place < self.dropout:
                return self.alone
            if self.caption is not None and place >= self.dropout + (1.0 - self.dropout) * self.template_probability:
                return self.caption
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
    levels: tuple[int, int],
    bias: float = 0.0,
    flip: bool,
) -> list[Sample]:
    """Return the `batch` samples that `rank` of `world` shows in `step` (from 0).

    `buckets` are the numbers of the images of one shape each, one that is to be shown more often several times. A
    step shows one shape, on all ranks, and of as many steps as there are images each bucket has as many as it has
    images, so that all are shown equally often. `prompts` are those of every image.
    Samples are numbered through the run, ranks side by side, so two ranks with one image each show what one rank
    shows with two. Those of a bucket are in epochs, which show each of its images once in an order of their own; a
    batch may reach into the next epoch, so none is ever short. Noise levels are from `levels[0]` to below `levels[1]`,
    all alike; a `bias` above 0 favours the high ones, below 0 the low ones.
    """
    bucket, turn = _turn(step, [len(bucket) for bucket in buckets], seed)
    images, which = buckets[bucket], (bucket,) if len(buckets) > 1 else ()
    first, first_of_bucket = (step * world + rank) * batch, (turn * world + rank) * batch
    shown = []
    for index in range(first, first + batch):
        epoch, place = divmod(first_of_bucket + index - first, len(images))
        image = images[int(rng.permutation(len(images), seed, "order", epoch, *which)[place])]
        shown.append(
            Sample(
                image=image,
                mirrored=flip and rng.integer(2, seed, "mirror", index) == 1,
                prompt=prompts[image].choose(seed, index),
                timestep=_level(levels, bias, seed, index),
                index=index,
            )
        )
    return shown


def _turn(step: int, counts: list[int], seed: int) -> tuple[int, int]:
    """Return the bucket that `step` shows, and how many steps showed it before; `counts` are the buckets' images."""
    if len(counts) == 1:
        return 0, step
    era, place = divmod(step, sum(counts))
    order = np.repeat(np.arange(len(counts)), counts)[rng.permutation(sum(counts), seed, "buckets", era)]
    bucket = int(order[place])
    return bucket, era * counts[bucket] + int((order[:place] == bucket).sum())


def _level(levels: tuple[int, int], bias: float, seed: int, index: int) -> int:
    low, high = levels
    if not bias:
        return low + rng.integer(high - low, seed, "timestep", index)
    place = rng.generator(seed, "timestep", index).random() ** math.exp(-bias)
    return low + min(int(place * (high - low)), high - low - 1)
