"""Writing of embedding files in the formats of all programs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gm.checkpoints import containers, torch_format
from gm.checkpoints.lazy_tensor import in_memory
from gm.config.paths import expand
from gm.embeddings import diffusers_files
from gm.embeddings.embedding import NO_POOLING, Embedding
from gm.embeddings.embedding_file import EmbeddingFile
from gm.embeddings.formats import FORMATS, ComfyUIFormat, Format, MindoneFormat, MindoneSDFormat
from gm.embeddings.metadata import file_metadata, merge_metadata, split_details
from gm.errors import UserError

log = logging.getLogger("gm")

SAVE_FORMATS = {".ckpt": MindoneFormat, ".safetensors": ComfyUIFormat}
SUFFIXES = (".ckpt", ".safetensors", ".pti", ".pt", ".bin")
_TORCH_SUFFIXES = (".pt", ".bin")
_SD1 = "stable-diffusion-v1/textual-inversion"  # ModelSpec's name


def save(embedding: Embedding, path: str | Path) -> None:
    """Write `embedding` to `path` atomically, in the format of its suffix; UserError if that is not possible."""
    path = Path(expand(path))
    suffix = path.suffix
    if suffix not in SAVE_FORMATS:
        raise UserError(f"{path} must end in .ckpt, or in .safetensors for other programs")
    keys = SAVE_FORMATS[suffix].keys
    if suffix == ".ckpt" and embedding.pooling == NO_POOLING:
        keys = MindoneSDFormat.keys
    tensors = {keys[encoder]: in_memory(vectors) for encoder, vectors in embedding.vectors.items()}
    entries = file_metadata(embedding.placeholder_token, embedding.num_vectors)
    containers.write(path, tensors, entries, notes=_metadata_entry(embedding))


def to_embedding_file(embedding: Embedding) -> EmbeddingFile:
    """Return `embedding` as the contents of a file."""
    format_ = "mindspore_sd" if embedding.pooling == NO_POOLING else "mindspore"
    return EmbeddingFile(format_, {embedding.placeholder_token: embedding.vectors}, _metadata_entry(embedding))


def write_file(file: EmbeddingFile, path: str | Path, format_: str, overwrite: bool = False) -> list[Path]:
    """Write the embeddings of `file` to `path` in another format, each file atomically; return the paths.

    The suffix decides the container. diffusers' second file is put beside the first. Pooling rules, details and other
    programs' metadata are kept; a warning says where a PyTorch file cannot hold them. Raises UserError for a suffix or
    a format that cannot hold the embeddings, and for a file that exists unless `overwrite` is set.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} must end in {', '.join(SUFFIXES)}, which says what to write")
    trees = FORMATS[format_].write(file.vectors, file.metadata)
    paths = diffusers_files.target_paths(path, len(trees))
    check_not_existing(paths, overwrite)
    entries, notes = _file_metadata(file)
    for target, tree in zip(paths, trees, strict=True):
        if target.suffix in _TORCH_SUFFIXES:
            _write_torch(target, tree, {**entries, **notes}, FORMATS[format_])
        else:
            _write_tensors(target, tree, entries, notes)
    return paths


def check_not_existing(paths: Sequence[Path], overwrite: bool) -> None:
    """Raise UserError if one of `paths` exists and must not be overwritten."""
    for path in paths:
        if path.exists() and not overwrite:
            raise UserError(f"--target {path} already exists; --overwrite replaces it")


def _write_torch(path: Path, tree: Mapping[str, Any], metadata: Mapping[str, str | int], format_: Format) -> None:
    if format_.extra_entries:
        torch_format.write(path, {**tree, **{key: value for key, value in metadata.items() if key not in tree}})
        return
    torch_format.write(path, tree)
    if metadata.get("pooling", format_.pooling) != format_.pooling:
        log.warning(
            "%s cannot hold the pooling rule of its embeddings and will be read as %s; write it as .safetensors",
            path,
            format_.pooling,
        )
    if lost := [key for key in metadata if key not in ("placeholder_token", "num_vectors", "pooling")]:
        log.warning("%s cannot hold %s of its embeddings; write it as .safetensors", path, ", ".join(lost))


def _write_tensors(
    path: Path, tree: Mapping[str, Any], entries: Mapping[str, str | int], notes: Mapping[str, str]
) -> None:
    if not all(isinstance(value, np.ndarray) for value in tree.values()):
        raise UserError(f"{path} can hold tensors only, and the format needs more; write it as .pt")
    tensors = {key: in_memory(value) for key, value in tree.items()}
    # diffusers and transformers read safetensors that say so only.
    framework = {} if path.suffix == ".ckpt" else {"format": "pt"}
    containers.write(path, tensors, {**framework, **entries}, notes=notes)


def _file_metadata(file: EmbeddingFile) -> tuple[dict[str, str | int], dict[str, str]]:
    """Return the entries that mindone's files have beside the vectors, and the rest."""
    by_token = {token or "": file.metadata_entry(token) for token in file.vectors}
    notes = {key: value if isinstance(value, str) else str(value) for key, value in merge_metadata(by_token).items()}
    if len(by_token) > 1:
        return {}, notes
    ((token, vectors),) = file.vectors.items()
    return file_metadata(token, len(next(iter(vectors.values())))), notes


def _metadata_entry(embedding: Embedding) -> dict[str, str]:
    details, others = split_details(embedding.metadata)
    pooling = {} if embedding.pooling == NO_POOLING else {"pooling": embedding.pooling}
    if not pooling and "clip_l" in embedding.vectors:  # else it would be read as of SDXL's text encoder 1
        others.setdefault("modelspec.architecture", _SD1)
    return {**pooling, "details": json.dumps(details), **others}
