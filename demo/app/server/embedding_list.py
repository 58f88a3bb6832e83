"""Embedding files in a folder."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gm.embeddings import diffusers_files
from gm.embeddings import io as embedding_io
from gm.errors import UserError
from gm.training import checkpoint

_SUFFIXES = (".ckpt", ".safetensors", ".pt", ".bin", ".pti")
# Of a training run, `SD-XL-base-1.0_3000_ti.ckpt`, by the step or as the best by its validation loss.
_OF_RUN = re.compile(r"(?P<stem>.+)_(?P<step>\d{1,12}|best)_ti")
_MAX_TOKENS_SHOWN = 4  # of a file
_MAX_BYTES = 50 * 10**6  # a model's weights are larger, an embedding file is not


def find_embeddings(folder: Path, without: Sequence[Path] = ()) -> dict[str, Path]:
    """Return a display name for each embedding file in `folder` and below → its path, the newest first.

    The folders `without` are left out.

    The name is the file's placeholder tokens, followed by its path, or its run, where another file has the same tokens;
    that of a training run's embedding which is not its best also has the step. Files that are not embedding files are
    left out.
    """
    paths = [path for path in _files(folder, set(without)) if path.suffix in _SUFFIXES and path.is_file()]
    # Training states hold embeddings, too, and training writes each embedding file in two formats.
    paths = [path for path in paths if not path.match(checkpoint.PATTERN)]
    paths = [path for path in paths if path.suffix == ".ckpt" or path.with_suffix(".ckpt") not in paths]
    paths = [path for path in paths if diffusers_files.find_files(path)[0] == path]  # the first of diffusers' two
    stats = {path: stat for path in paths if (stat := _stat(path))}
    newest = sorted(stats, key=lambda path: stats[path].st_mtime_ns, reverse=True)
    tokens = {path: _placeholder_tokens(path, stats[path].st_mtime_ns, stats[path].st_size) for path in newest}
    older = {path: step for steps in steps_of_runs(tokens).values() for step, path in list(steps.items())[1:]}
    names = [name for path, name in tokens.items() if path not in older]
    return {
        _display_name(path.relative_to(folder), name, older.get(path, ""), names.count(name) > 1): path
        for path, name in tokens.items()
        if name
    }


def steps_of_runs(paths: Iterable[Path]) -> dict[Path, dict[str, Path]]:
    """Return the embedding files of each training run by their step, under that which stands for the run.

    That is the first of them: "best" if there is one, else the last step; the others follow, the last first.
    """
    runs: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in paths:
        if match := _OF_RUN.fullmatch(path.stem):
            runs.setdefault((path.parent, match["stem"]), {})[match["step"]] = path
    ordered = (
        sorted(steps.items(), key=lambda each: (each[0] == "best", each[0].isdecimal() and int(each[0])), reverse=True)
        for steps in runs.values()
    )
    return {steps[0][1]: dict(steps) for steps in ordered}


def _display_name(path: Path, tokens: str, step: str, is_ambiguous: bool) -> str:
    """Return the name of the file at `path`, below the folder of runs; `step` if it stands beside its run's best."""
    is_of_run = _OF_RUN.fullmatch(path.stem) is not None and path.parent != Path()
    place = str(path.parent if is_of_run else path)
    if step:
        return f"{tokens}, step {step} ({path})" if not is_of_run else f"{tokens}, step {step} ({place})"
    return f"{tokens} ({place})" if is_ambiguous else tokens


def _files(folder: Path, without: set[Path]) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):  # leaves out what cannot be read
        parent = Path(name)
        folders[:] = [each for each in folders if parent / each not in without]
        yield from (parent / file for file in files)


def _stat(path: Path) -> os.stat_result | None:
    """Return size and time of a file, None if it has just been removed."""
    try:
        return path.stat()
    except OSError:
        return None


@functools.lru_cache(maxsize=1000)
def _placeholder_tokens(path: Path, modified: int, size: int) -> str:
    """Return the placeholder tokens in a file, "" if it is not an embedding file; cached until it is `modified`."""
    if size > _MAX_BYTES:
        return ""
    try:
        tokens = [embedding.placeholder_token for embedding in embedding_io.load_all(path, family=None)]
        more = f" and {len(tokens) - _MAX_TOKENS_SHOWN} more" if len(tokens) > _MAX_TOKENS_SHOWN else ""
        return ", ".join(tokens[:_MAX_TOKENS_SHOWN]) + more
    except UserError:
        return ""
