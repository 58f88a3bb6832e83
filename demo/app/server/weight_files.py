"""Files of weights in a folder, to choose from."""

from __future__ import annotations

import os
from pathlib import Path

_SUFFIXES = (".ckpt", ".safetensors")
_MAX_FILES = 500
_MAX_DEPTH = 2  # folders below
_MIN_BYTES = 10**6  # an embedding file or a LoRA may lie there, too; what is smaller is no model


def checkpoints(folder: Path) -> list[Path]:
    """Return the files of models, and diffusers folders of them, in `folder` and below, by name."""
    return [path for path in _weights(folder) if not _is_vae(path, folder)]


def vaes(folder: Path) -> list[Path]:
    """Return the files of VAEs: those with "vae" in their name, or in that of their folder."""
    return [path for path in _weights(folder) if _is_vae(path, folder)]


def _is_vae(path: Path, folder: Path) -> bool:
    return "vae" in str(path.relative_to(folder)).lower()


def _weights(folder: Path) -> list[Path]:
    paths: list[Path] = []
    for name, folders, files in os.walk(folder):  # leaves out what cannot be read
        parent = Path(name)
        models = [each for each in folders if (parent / each / "model_index.json").is_file()]
        paths += [parent / each for each in models]
        is_deep = len(parent.relative_to(folder).parts) >= _MAX_DEPTH
        folders[:] = [] if is_deep else sorted(set(folders).difference(models))
        paths += [parent / each for each in files if each.endswith(_SUFFIXES) and _is_large(parent / each)]
    return sorted(paths, key=lambda path: str(path.relative_to(folder)).lower())[:_MAX_FILES]


def _is_large(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size >= _MIN_BYTES
    except OSError:
        return False
