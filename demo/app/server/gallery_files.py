"""The images of a browser: listed, deleted, and packed for download."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from gm.errors import UserError

_MAX_PACKED = 5 * 10**8  # bytes, which the server holds in memory while they are sent


def images(folder: Path) -> list[Path]:
    """Return the images in `folder`, the newest first."""
    return sorted((path for path in folder.glob("image_*.png") if path.is_file()), reverse=True)


def delete(path: Path) -> None:
    """Delete an image; UserError if that is not possible. One that is gone already is no error."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot delete {path.name}: {error.strerror}") from error


def pack(paths: list[Path]) -> tuple[bytes, int]:
    """Return a ZIP of images, and how many of `paths` it holds, the first of them; UserError if one cannot be read."""
    packed, size = 0, 0
    file = io.BytesIO()
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
        raise UserError(f"cannot pack the images: {error.strerror}; load the page again") from error
    return file.getvalue(), packed
