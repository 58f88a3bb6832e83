"""Paths that users type: `~` is their home folder, and shipped files are found from any working folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]


def expand(path: str | Path) -> str:
    """Return `path` with `~` and `~user` at its beginning replaced by the home folder, if there is one.

    A shell does that for `--weight ~/a.ckpt`, but not for `--weight=~/a.ckpt`, a YAML file or a text field.
    """
    return os.path.expanduser(path)


def find_shipped(path: str | Path) -> str:
    """Return `path`, expanded; a relative path that exists in the project's folder only becomes an absolute one."""
    expanded = expand(path)
    shipped = PROJECT / expanded
    return str(shipped) if expanded and not os.path.lexists(expanded) and shipped.exists() else expanded


def resolve(value: Any, kind: str) -> Any:
    """Return the value of an option of paths: a path, a list of them, or None."""
    if isinstance(value, (list, tuple)):
        return [resolve(each, kind) for each in value]
    if not isinstance(value, (str, os.PathLike)):
        return value
    return find_shipped(str(value)) if kind == "shipped" else expand(str(value))
