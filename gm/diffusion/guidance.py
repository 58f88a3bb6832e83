"""Guidance: one prediction from those with the prompt and with the negative prompt."""

from __future__ import annotations

from typing import Any

from gm.diffusion import registry

GUIDERS = {
    "cfg": "classifier-free guidance (Ho and Salimans, 2022)",
    "none": "the prompt alone",
    "rescaled": "classifier-free guidance, rescaled to the contrast of the prompt alone (Lin et al., 2023)",
}
# The names in mindone's configs (sgm's classes).
ALIASES = {"VanillaCFG": "cfg", "IdentityGuider": "none"}


def resolve_name(name: str) -> str:
    """Return the name in `GUIDERS` that `name` stands for; UserError lists the known names."""
    return registry.resolve("guider", name, GUIDERS, ALIASES)


def classifier_free_guidance(unconditional: Any, conditional: Any, scale: Any) -> Any:
    """Return u + s·(c - u): scale 1 is the conditional prediction (Ho and Salimans, 2022, whose w is s - 1)."""
    return unconditional + scale * (conditional - unconditional)


def rescale_guidance(guided: Any, conditional: Any, phi: Any) -> Any:
    """Return `guided` [N, C, H, W] with its standard deviation moved to that of `conditional` by the factor φ.

    Lin et al., 2023, "Common diffusion noise schedules and sample steps are flawed", equations 15 and 16.
    """
    return guided * (phi * _std(conditional) / _std(guided) + (1.0 - phi))


def _std(x: Any) -> Any:
    """Return the standard deviation of each image, [N, 1, 1, 1]."""
    flat = x.reshape((x.shape[0], -1))
    deviation = flat - flat.mean(1).reshape((-1, 1))
    return ((deviation * deviation).mean(1) ** 0.5).reshape((-1, 1, 1, 1))
