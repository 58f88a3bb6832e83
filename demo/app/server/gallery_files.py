"""The images of a browser: listed, deleted, and packed for download."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO, cast

from gm.errors import UserError

_MAX_PACKED = 10**9  # bytes, which the server holds in memory while they are sent


def images(folder: Path) -> list[Path]:
    """Return the images in `folder`, the newest first."""
    return sorted((path for path in folder.glob("image_*.png") if path.is_file()), reverse=True)


def delete(path: Path) -> None:
    """Delete an image; UserError if that is not possible. One that is gone already is no error."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot delete {path.name}: {error.strerror}") from error


def pack(paths: list[Path]) -> tuple[BinaryIO, int]:
    """Return a ZIP of images, an open temporary file, and how many of `paths` it holds, the first of them.

    UserError if there is no space for it.
    """
    packed, size = 0, 0
    file = tempfile.TemporaryFile()  # noqa: SIM115  # returned open
    try:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # a PNG is compressed already
            for path in paths:
                content = path.read_bytes()
                size += len(content)
                if packed and size > _MAX_PACKED:
                    break
                archive.writestr(path.name, content)
                packed += 1
    except OSError as error:
        file.close()
        raise UserError(f"cannot pack the images: {error.strerror}; tell the owner of the machine") from error
    file.seek(0)
    return cast(BinaryIO, file), packed
