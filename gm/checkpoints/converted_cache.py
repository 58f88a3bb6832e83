"""Weights in other formats, converted once into a cache folder: the next run loads the converted file at once.

The folder is `weights` beside the compiled graphs, or in the folder of the environment variable `GM_GRAPHS`. A file is
found by the names, sizes and times of its source's files, and the model's config.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from gm.checkpoints import containers, diffusers_format, loading, torch_format
from gm.config.model import ModelConfig
from gm.runtime import compile_cache

log = logging.getLogger("gm")

_FORMAT = 1  # of the converted files; another number makes those of earlier versions unused
_MARGIN = 1.1  # free space needed, as a multiple of the size of the source


def converted(source: Path, config: ModelConfig, without: Sequence[str] = ()) -> Path:
    """Return a file with the weights of a diffusers folder or PyTorch file `source`; other weights are their own.

    `without` are networks that come from elsewhere; a source that may lack one is not converted. The source itself is
    returned, and the reason logged, where the cache is off or its disk is full. Raises UserError as `loading.convert`.
    """
    if without or not (source.is_dir() or torch_format.is_torch_file(source)):
        return source
    folder = cache_folder()
    if folder is None:
        return source
    target = folder / f"{source.resolve().stem}-{_key(source, config)}.safetensors"
    if target.is_file():
        log.info("%s: the converted weights are in %s", source, target)
        os.utime(target)
        return target
    needed = _MARGIN * sum(path.stat().st_size for path in _files(source))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        log.info("%s is read as it is: %s is not writable (%s)", source, folder, error.strerror)
        return source
    if free < needed:
        log.info("%s is read as it is: its converted weights need %.1f GB in %s", source, needed / 1e9, folder)
        return source
    with FileLock(target.with_suffix(".lock")):  # of several processes, one converts
        if not target.is_file():
            log.info("converting %s into %s, once", source, target)
            loading.convert(source, target, config, _dtype(source))
    return target


def cache_folder() -> Path | None:
    """Return the folder of the converted files; None if caching is off."""
    graphs = compile_cache.cache_dir()
    if graphs is None:
        return None
    return graphs / "weights" if os.environ.get("GM_GRAPHS") else graphs.with_name("weights")


def _files(source: Path) -> list[Path]:
    """Return the files of a source that its weights and configs are read from."""
    if not source.is_dir():
        return [source]
    suffixes = (".safetensors", ".bin", ".json")
    files = [path for path in source.rglob("*") if path.suffix in suffixes and path.is_file()]
    return sorted(path for path in files if path.relative_to(source).parts[0] != "safety_checker")


def _key(source: Path, config: ModelConfig) -> str:
    base = source if source.is_dir() else source.parent
    files = [(str(path.relative_to(base)), path.stat()) for path in _files(source)]
    described = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return hashlib.sha256(repr((_FORMAT, config, described)).encode()).hexdigest()[:16]


def _dtype(source: Path) -> str:
    """Return float16 for weights that are all of it, else float32: bfloat16 has a wider range."""
    if not source.is_dir():
        tensors = containers.read_weights(source).tensors
    else:
        tensors = diffusers_format.read_network(source / "unet")
    return "float16" if all(tensor.dtype == "float16" for tensor in tensors.values()) else "float32"
