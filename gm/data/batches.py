"""Which pictures, prompts and noise levels each step shows: a pure function of the step, so nothing need be saved."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gm import draws


@dataclass(frozen=True)
class Sample:
    """One thing shown to the model.

    picture: number of the picture; mirrored: whether it is flipped; prompt: number of the prompt;
    timestep: number of the noise level; index: number of this sample in the whole run, from 0
    """

    picture: int
    mirrored: bool
    prompt: int
    timestep: int
    index: int


@dataclass(frozen=True)
class PromptChoice:
    """The prompts to choose from, by number: first come the `templates`.

    captions: the number of each picture's own caption, None where it has none, or empty; alone: the number of the
    prompt that is the new word alone; template_share: how often a template stands in for a caption; dropout: how often
    the word alone stands in for both
    """

    templates: int
    captions: tuple[int | None, ...] = ()
    alone: int = 0
    template_share: float = 0.0
    dropout: float = 0.0

    def choose(self, picture: int, seed: int, index: int) -> int:
        """Return the number of the prompt that sample `index` shows `picture` with."""
        caption = self.captions[picture] if self.captions else None
        if caption is not None or self.dropout:
            place = float(draws.generator(seed, "prompt", index).random())
            if place < self.dropout:
                return self.alone
            if caption is not None and place >= self.dropout + (1.0 - self.dropout) * self.template_share:
                return caption
        return draws.integer(self.templates, seed, "template", index)


def samples(
    step: int,
    *,
    seed: int,
    batch: int,
    rank: int,
    world: int,
    pictures: int,
    prompts: PromptChoice,
    levels: tuple[int, int],
    bias: float = 0.0,
    flip: bool,
) -> list[Sample]:
    """Return the `batch` samples that `rank` of `world` shows in `step` (from 0).

    Samples are numbered through the run, ranks side by side, so two ranks with one picture each show what one rank
    shows with two. Every `pictures` samples in a row are an epoch, which shows each picture once in an order of its
    own; a batch may reach into the next epoch, so none is ever short. Noise levels are from `levels[0]` to below
    `levels[1]`, all alike; a `bias` above 0 favours the high ones, below 0 the low ones.
    """
    first = (step * world + rank) * batch
    shown = []
    for index in range(first, first + batch):
        epoch, place = divmod(index, pictures)
        picture = int(draws.permutation(pictures, seed, "order", epoch)[place])
        shown.append(
            Sample(
                picture=picture,
                mirrored=flip and draws.integer(2, seed, "mirror", index) == 1,
                prompt=prompts.choose(picture, seed, index),
                timestep=_level(levels, bias, seed, index),
                index=index,
            )
        )
    return shown


def _level(levels: tuple[int, int], bias: float, seed: int, index: int) -> int:
    low, high = levels
    if not bias:
        return low + draws.integer(high - low, seed, "timestep", index)
    place = draws.generator(seed, "timestep", index).random() ** math.exp(-bias)
    return low + min(int(place * (high - low)), high - low - 1)
