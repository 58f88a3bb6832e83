"""Names of samplers, schedules and guiders: their own, and the aliases of other programs."""

from __future__ import annotations

from collections.abc import Mapping

from gm.errors import UserError, did_you_mean


def resolve(kind: str, name: str, known: Mapping[str, object], aliases: Mapping[str, str]) -> str:
    """Return the key of `known` that `name` is or is an alias of; UserError calls it a `kind` and lists all names."""
    resolved = aliases.get(name, name)
    if resolved not in known:
        names = [*known, *aliases]
        raise UserError(f"unknown {kind} {name!r}; known are {', '.join(names)}{did_you_mean(name, names)}")
    return resolved
