"""Which pictures, prompts and noise levels each step shows: a pure function of the step, so nothing need be saved."""

from __future__ import annotations

from dataclasses import dataclass

from gm import draws


@dataclass(frozen=True)
class Sample:
    """One thing shown to the model.

    picture: number of the picture; mirrored: whether it is flipped; template: number of the prompt template;
    timestep: number of the noise level; index: number of this sample in the whole run, from 0
    """

    picture: int
    mirrored: bool
    template: int
    timestep: int
    index: int


def samples(
    step: int,
    *,
    seed: int,
    batch: int,
    rank: int,
    world: int,
    pictures: int,
    templates: int,
    timesteps: int,
    flip: bool,
) -> list[Sample]:
    """Return the `batch` samples that `rank` of `world` shows in `step` (from 0).

    Samples are numbered through the run, ranks side by side, so two ranks with one picture each show what one rank
    shows with two. Every `pictures` samples in a row are an epoch, which shows each picture once in an order of its
    own; a batch may reach into the next epoch, so none is ever short.
    """
    first = (step * world + rank) * batch
    shown = []
    for index in range(first, first + batch):
        epoch, place = divmod(index, pictures)
        shown.append(
            Sample(
                picture=int(draws.permutation(pictures, seed, "order", epoch)[place]),
                mirrored=flip and draws.integer(2, seed, "mirror", index) == 1,
                template=draws.integer(templates, seed, "template", index),
                timestep=draws.integer(timesteps, seed, "timestep", index),
                index=index,
            )
        )
    return shown
