"""The learned words in a folder."""

from __future__ import annotations

import functools
from pathlib import Path

from gm.embeddings import io as embedding_io
from gm.errors import UserError
from gm.training import checkpoint

_ENDINGS = (".ckpt", ".safetensors", ".pt", ".bin", ".pti")
_MOST_BYTES = 50 * 10**6  # a model's weights are larger, an embedding file is not


def found(folder: Path) -> dict[str, Path]:
    """Return what to call each embedding file in `folder` and below → its path, the newest first.

    It is called by its words, and by its name where another file has the same. What is no embedding file is left out.
    """
    paths = [path for path in folder.rglob("*") if path.suffix in _ENDINGS and path.is_file()]
    # States of runs hold the words, too, half learned, and training writes each embedding file in two formats.
    paths = [path for path in paths if not path.match(checkpoint.PATTERN)]
    paths = [path for path in paths if path.suffix == ".ckpt" or path.with_suffix(".ckpt") not in paths]
    stats = {path: path.stat() for path in paths}
    newest = sorted(paths, key=lambda path: stats[path].st_mtime_ns, reverse=True)
    named = {path: _words(path, stats[path].st_mtime_ns, stats[path].st_size) for path in newest}
    words = list(named.values())
    return {
        name if words.count(name) == 1 else f"{name} ({path.relative_to(folder)})": path
        for path, name in named.items()
        if name
    }


@functools.lru_cache(maxsize=1000)
def _words(path: Path, changed: int, size: int) -> str:
    """Return the words in a file, "" if it is no embedding file; read once, and again if it has `changed`."""
    if size > _MOST_BYTES:
        return ""
    try:
        return ", ".join(concept.placeholder_token for concept in embedding_io.load_all(path))
    except UserError:
        return ""
