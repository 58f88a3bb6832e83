"""Paths that users type: `~` is their home folder, and shipped files are found from any working folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from gm.errors import UserError

_MAX_NAME = 255  # bytes of one part of a path, on all usual file systems
_MAX_PATH = 4095  # bytes of a path
_SPECIAL = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
PROJECT = Path(__file__).resolve().parents[2]


def expand(path: str | Path) -> str:
    """Return `path` with `~` and `~user` at its beginning replaced by the home folder, if there is one.

    A shell does that for `--weight ~/a.ckpt`, but not for `--weight=~/a.ckpt`, a YAML file or a text field.
    """
    return os.path.expanduser(path)


def check(value: Any, option: str) -> None:
    """Raise UserError, naming the `option`, for a path, or one in a list, that is no path of a file or folder.

    It has a null character, is longer than a path may be, or is a pipe or device, whose reading may never end.
    """
    if isinstance(value, (list, tuple)):
        for each in value:
            check(each, option)
        return
    if not isinstance(value, (str, os.PathLike)):
        return
    if "\0" in str(value):
        raise UserError(f"{option} {str(value)[:40]!r} has a null character, which no path can have; leave it out")
    text = expand(str(value))
    # Bytes that are not UTF-8 are kept in a str as surrogates.
    lengths = [len(part.encode("utf-8", "surrogatepass")) for part in (text, *text.split("/"))]
    if lengths[0] > _MAX_PATH or max(lengths[1:]) > _MAX_NAME:
        raise UserError(
            f"{option} {text[:40]}… is longer than a path can be; a name has at most {_MAX_NAME} bytes, a path "
            f"{_MAX_PATH}"
        )
    check_regular(text, option)


def check_regular(path: str | Path, option: str = "") -> None:
    """Raise UserError, naming the `option`, if `path` is a pipe, device or socket; it may be missing."""
    if kind := special_kind(path):
        raise UserError(f"{option} {path} is {kind}; give a file or folder".strip())


def special_kind(path: str | Path) -> str:
    """Return the kind of a pipe, device or socket in words, "" for any other path."""
    try:
        return _SPECIAL.get(stat.S_IFMT(os.stat(path).st_mode), "")
    except (OSError, ValueError):
        return ""  # its reader reports the error


def find_shipped(path: str | Path) -> str:
    """Return `path`, expanded; a relative path that exists in the project's folder only becomes an absolute one."""
    expanded = expand(path)
    shipped = PROJECT / expanded
    return str(shipped) if expanded and not os.path.lexists(expanded) and os.path.exists(shipped) else expanded


def resolve(value: Any, kind: str) -> Any:
    """Return the value of an option of paths: a path, a list of them, or None."""
    if isinstance(value, (list, tuple)):
        return [resolve(each, kind) for each in value]
    if not isinstance(value, (str, os.PathLike)):
        return value
    return find_shipped(str(value)) if kind == "shipped" else expand(str(value))
