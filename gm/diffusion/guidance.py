"""Classifier-free guidance (Ho and Salimans, 2022)."""

from __future__ import annotations

from typing import Any


def guided(unconditional: Any, conditional: Any, scale: Any) -> Any:
    """Return u + s·(c - u): scale 1 is the conditional prediction, more exaggerates what the prompt adds."""
    return unconditional + scale * (conditional - unconditional)
