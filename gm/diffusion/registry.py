"""Choosing one of several ways by name: ours, and those that users of other programs know."""

from __future__ import annotations

from collections.abc import Mapping

from gm.errors import UserError, did_you_mean


def resolve(kind: str, name: str, known: Mapping[str, object], aliases: Mapping[str, str]) -> str:
    """Return the key of `known` that `name` stands for; UserError, calling it a `kind`, lists them all."""
    own = aliases.get(name, name)
    if own not in known:
        everything = [*known, *aliases]
        raise UserError(f"unknown {kind} {name!r}; known are {', '.join(everything)}{did_you_mean(name, everything)}")
    return own
