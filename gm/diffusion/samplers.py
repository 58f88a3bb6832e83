"""Ways from noise to a picture, all of one signature: (denoise, x, sigmas, times) → x after each step.

`denoise(x, sigma, time)` returns the clean latents it believes in; `x` starts at noise level sigmas[0]. The caller
owns the progress bar: a sampler yields its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gm.errors import UserError, suggestion

Denoise = Callable[[Any, float, int], Any]
Sampler = Callable[[Denoise, Any, np.ndarray, np.ndarray], Iterator[Any]]


def euler(denoise: Denoise, x: Any, sigmas: np.ndarray, times: np.ndarray) -> Iterator[Any]:
    """Euler's method on the probability-flow equation dx/dσ = (x - D(x, σ)) / σ (Karras et al., 2022, algorithm 1)."""
    for sigma, following, time in zip(sigmas[:-1], sigmas[1:], times, strict=True):
        slope = (x - denoise(x, float(sigma), int(time))) / float(sigma)
        x = x + slope * float(following - sigma)
        yield x


SAMPLERS: dict[str, Sampler] = {"euler": euler}
ALIASES = {"EulerEDMSampler": "euler"}  # the names that mindone's users know


def by_name(name: str) -> Sampler:
    """Return the sampler called `name`; UserError lists the known ones."""
    known = {**SAMPLERS, **{alias: SAMPLERS[target] for alias, target in ALIASES.items()}}
    if name not in known:
        raise UserError(f"unknown sampler {name!r}; known are {', '.join(known)}{suggestion(name, known)}")
    return known[name]
