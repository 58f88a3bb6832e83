"""Files that are there whole or not at all: written beside their place, flushed to disk, then renamed into it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from gm.errors import UserError

_NUMBER = itertools.count()  # two threads of one process may write the same file
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the file system or a limit (ulimit -f) allows",
}


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give an empty temporary file to write; it becomes `path` when the block ends without an exception.

    Otherwise it is removed and `path` stays as it was. A killed process leaves `.NAME.PID.N.tmp` behind, which the
    next write to the same place removes. Raises UserError for a folder that is not there or not writable, a `path`
    that is no regular file, and a full disk.
    """
    target = Path(os.path.realpath(path))  # a link keeps pointing at the file it points at
    if target.exists() and not target.is_file():
        raise UserError(f"{path} is not a file; give the name of a file to write")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{next(_NUMBER)}.tmp")
    try:
        _remove_leftovers(target.parent, re.escape(target.name))
        temporary.touch()
    except OSError as error:
        raise UserError(f"cannot write {path}: {_reason(error, target.parent)}") from error
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise UserError(f"cannot write {path}: {_FULL[error.errno]}; make room and start again") from error
        raise
    with contextlib.suppress(OSError):  # not every file system lets a folder be flushed; the file itself is safe
        _flush(target.parent)


def check_writable(path: str | Path, option: str) -> None:
    """Raise UserError, naming the `option`, if the folder `path` could not be made or written to; makes nothing."""
    folder = Path(path).absolute()
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"cannot write to {option} {path}: {nearest} is not a folder; choose another")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {option} {path}: {nearest} is not writable; choose another")


def clean_leftovers(folder: str | Path) -> None:
    """Remove what killed processes left of writes to any file in `folder`."""
    _remove_leftovers(Path(folder), ".+")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_leftovers(folder: Path, name: str) -> None:
    """Remove what killed processes left of earlier writes to files whose names the expression `name` matches."""
    pattern = re.compile(rf"\.{name}\.(\d+)\.\d+\.tmp")
    for entry in os.listdir(folder):
        match = pattern.fullmatch(entry)
        if match and not _alive(int(match[1])):
            (folder / entry).unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _reason(error: OSError, folder: Path) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is not a folder {folder}; create it first"
    if error.errno in _FULL:
        return f"{_FULL[error.errno]}; make room and start again"
    return f"{error.strerror}; choose a place that you may write to"
