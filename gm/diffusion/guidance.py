"""How the predictions with and without the prompt become one."""

from __future__ import annotations

from typing import Any

from gm.diffusion import registry

GUIDERS = {
    "cfg": "classifier-free guidance (Ho and Salimans, 2022)",
    "none": "the prompt alone",
    "rescaled": "classifier-free guidance brought back to the contrast of the prompt alone (Lin et al., 2023)",
}
# The names that mindone's users know.
ALIASES = {"VanillaCFG": "cfg", "IdentityGuider": "none"}


def by_name(name: str) -> str:
    """Return the name in `GUIDERS` that `name` stands for; UserError lists the known ones."""
    return registry.resolve("guider", name, GUIDERS, ALIASES)


def classifier_free_guidance(unconditional: Any, conditional: Any, scale: Any) -> Any:
    """Return u + s·(c - u): scale 1 is the conditional prediction, more exaggerates what the prompt adds."""
    return unconditional + scale * (conditional - unconditional)


def rescale_guidance(guided: Any, conditional: Any, share: Any) -> Any:
    """Return `guided` [N, C, H, W] with its standard deviation moved by `share` to that of `conditional`.

    Lin et al., 2023, "Common diffusion noise schedules and sample steps are flawed", equations 15 and 16.
    """
    return guided * (share * _spread(conditional) / _spread(guided) + (1.0 - share))


def _spread(x: Any) -> Any:
    """Return the standard deviation of each image [N, 1, 1, 1]."""
    flat = x.reshape((x.shape[0], -1))
    deviation = flat - flat.mean(1).reshape((-1, 1))
    return ((deviation * deviation).mean(1) ** 0.5).reshape((-1, 1, 1, 1))
