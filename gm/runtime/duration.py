"""Durations as text."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Return a duration in the two units that matter: 48 s, 3:05 min, 2:10 h."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 100:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"
