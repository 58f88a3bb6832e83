"""Atomic writes: a temporary file in the same folder, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from gm.errors import UserError

_next_number = itertools.count()  # two threads of one process may write the same file
_NO_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the file system or a limit (ulimit -f) allows",
}


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary file to write, which replaces `path` when the block ends without an exception.

    With an exception, the temporary file is removed and `path` stays as it was. A killed process leaves
    `.NAME.PID.N.tmp` behind, which the next write to the same path removes. Raises UserError for a folder that does not
    exist or is not writable, a `path` that is not a regular file, and a full disk.
    """
    target = Path(os.path.realpath(path))  # a symbolic link stays one; the file behind it is replaced
    if target.exists() and not target.is_file():
        raise UserError(f"{path} is not a file; give the name of a file to write")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{next(_next_number)}.tmp")
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
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise UserError(f"cannot write {path}: {_NO_SPACE[error.errno]}; make room and start again") from error
        raise
    with contextlib.suppress(OSError):  # not every file system can flush a folder; the file's content is safe already
        _flush(target.parent)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Make `target` a hard link to the file `source`, or a copy where the file system has no such links.

    Of a symbolic link the file behind it is meant. Raises UserError as `atomic_write`, and OSError for a file that
    cannot be read.
    """
    file = os.path.realpath(source)  # a hard link to a symbolic link would still lead to another place
    if os.path.exists(target) and os.path.samefile(file, target):
        return  # renaming one link of a file to another does nothing
    with atomic_write(target) as temporary:
        temporary.unlink()
        try:
            os.link(file, temporary)
        except OSError:  # another file system, one without hard links, or a file of another user
            shutil.copyfile(file, temporary)


def check_writable(path: str | Path, option: str) -> None:
    """Raise UserError, naming the `option`, unless the folder `path` is or could be created and is writable."""
    folder = Path(path).absolute()
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"cannot write to {option} {path}: {nearest} is not a folder; choose another")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {option} {path}: {nearest} is not writable; choose another")


def clean_leftovers(folder: str | Path) -> None:
    """Remove the temporary files of killed processes from `folder`."""
    _remove_leftovers(Path(folder), ".+")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_leftovers(folder: Path, name: str) -> None:
    """Remove the temporary files of killed processes for target names that match the regular expression `name`."""
    pattern = re.compile(rf"\.{name}\.(\d+)\.\d+\.tmp")
    for entry in os.listdir(folder):
        match = pattern.fullmatch(entry)
        if match and not _is_running(int(match[1])):
            (folder / entry).unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _reason(error: OSError, folder: Path) -> str:
    if isinstance(error, FileNotFoundError):
        return f"folder {folder} does not exist; create it first"
    if error.errno in _NO_SPACE:
        return f"{_NO_SPACE[error.errno]}; make room and start again"
    return f"{error.strerror}; choose a folder that is writable"
