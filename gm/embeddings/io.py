"""Embedding files: `<version>_<step>_ti.ckpt`, `.safetensors`, and the files of other programs.

The first four entries of the `.ckpt` are those of mindone's SDXL files, so each program loads the other's; `pooling`
and `details` (JSON: base model, step, seed, training options) follow. The `.safetensors` holds the vectors as `clip_l`
and `clip_g`, as AUTOMATIC1111, ComfyUI and diffusers read them, and the same entries as metadata.

`load` and `save` take embeddings that SDXL can use. `read_file` and `write_file` take any file, also one with the
vectors of a single text encoder, as Stable Diffusion 1.5 has them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gm.checkpoints import containers, detect, torch_format
from gm.checkpoints.lazy_tensor import in_memory
from gm.config import POOLING_RULES
from gm.embeddings import diffusers_files, formats, names
from gm.embeddings.embedding import Embedding, file_name
from gm.embeddings.formats import ENCODERS, FORMATS, ComfyUIFormat, EncoderVectors, Format, MindoneFormat, TokenVectors
from gm.embeddings.metadata import file_metadata, merge_metadata, parse_details, token_metadata
from gm.errors import DamagedFileError, UserError

log = logging.getLogger("gm")

SAVE_FORMATS = {".ckpt": MindoneFormat, ".safetensors": ComfyUIFormat}
SUFFIXES = (".ckpt", ".safetensors", ".pti", ".pt", ".bin")
_TORCH_SUFFIXES = (".pt", ".bin")


@dataclass(frozen=True)
class EmbeddingFile:
    """Contents of an embedding file: format name, vectors by placeholder token and encoder, other entries by key."""

    format: str
    vectors: TokenVectors
    metadata: dict[str, Any] = field(default_factory=dict)

    def token_metadata(self, token: str | None) -> dict[str, str]:
        """Return the metadata of one placeholder token: "pooling", and "details" if there are any."""
        return token_metadata(self.metadata, token, FORMATS[self.format].pooling)


def save(embedding: Embedding, path: str | Path) -> None:
    """Write `embedding` to `path` atomically, in the format of its suffix; UserError if that is not possible."""
    suffix = Path(path).suffix
    if suffix not in SAVE_FORMATS:
        raise UserError(f"{path} must end in .ckpt, or in .safetensors for other programs")
    tensors = {key: in_memory(embedding.vectors[encoder]) for encoder, key in SAVE_FORMATS[suffix].keys.items()}
    entry = _metadata_entry(embedding)
    entries = file_metadata(embedding.placeholder_token, embedding.num_vectors, entry)
    containers.write(path, tensors, entries)


def to_embedding_file(embedding: Embedding) -> EmbeddingFile:
    """Return `embedding` as the contents of a file."""
    return EmbeddingFile("mindspore", {embedding.placeholder_token: embedding.vectors}, _metadata_entry(embedding))


def load(path: str | Path) -> Embedding:
    """Read an embedding file of one placeholder token; UserError if it holds several, and as `load_all` does."""
    embeddings = load_all(path)
    if len(embeddings) > 1:
        tokens = ", ".join(embedding.placeholder_token for embedding in embeddings)
        raise UserError(f"{path} holds several embeddings ({tokens}); give a file that holds one")
    return embeddings[0]


def load_all(path: str | Path) -> list[Embedding]:
    """Read the embeddings in a file of any program, as `read_file` does.

    An embedding whose placeholder token is not in the file gets the token in `token_identifier.txt` beside
    `learned_embeds`, or the one that the name of the file stands for (`gm.embeddings.names`). `file=<token>` chooses
    another. Raises UserError for a file that is not an embedding file,
    lacks a text encoder, contradicts itself, is damaged, or holds vectors that are not finite.
    """
    path, chosen_token = names.split_token(path)
    file = read_file(path)
    token_entry = file.metadata.get("placeholder_token")
    if file.format == "mindspore" and not token_entry and not chosen_token:
        for vectors in file.vectors.values():
            _check_vectors(path, vectors)
        raise UserError(f"{path} does not name its placeholder token (placeholder_token); save it again with one")
    if chosen_token and len(file.vectors) > 1:
        tokens = ", ".join(map(str, file.vectors))
        raise UserError(f'"={chosen_token}" renames one embedding, and {path} holds several ({tokens})')
    return [
        Embedding(
            chosen_token or token or str(token_entry or "") or _token_from_file_name(path),
            _check_vectors(path, vectors),
            *_parse_token_metadata(path, file.token_metadata(token)),
            source=str(path),
        )
        for token, vectors in file.vectors.items()
    ]


def read_file(path: str | Path) -> EmbeddingFile:
    """Read an embedding file of any program, or the folder or one of the files that diffusers writes.

    A placeholder token that such a file does not name may stand in `token_identifier.txt` beside it. Raises UserError
    for a file that is not an embedding file, is damaged, or repeats an embedding. A PyTorch file is never executed.
    """
    path = Path(path)
    paths = diffusers_files.find_files(path)
    files = [_read_one(each) for each in paths]
    parts: dict[str | None, list[EncoderVectors]] = {}
    for file in files:
        for token, embedding in file.vectors.items():
            parts.setdefault(token, []).append(embedding)
    vectors: TokenVectors = {token: diffusers_files.join_vectors(path, each) for token, each in parts.items()}
    metadata = {**files[-1].metadata, **files[0].metadata}
    identifier = "" if metadata.get("placeholder_token") else diffusers_files.read_identifier(paths[0])
    if identifier and list(vectors) == [None]:
        vectors = {identifier: vectors[None]}
    return EmbeddingFile(files[0].format, vectors, metadata)


def write_file(file: EmbeddingFile, path: str | Path, format_: str, overwrite: bool = False) -> list[Path]:
    """Write the embeddings of `file` to `path` in another format, each file atomically; return the paths.

    The suffix decides the container. diffusers' second file is put beside the first. Pooling rules and details are
    kept; a warning says where a PyTorch file cannot hold them. Raises UserError for a suffix or a format that cannot
    hold the embeddings, and for a file that exists unless `overwrite` is set.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} must end in {', '.join(SUFFIXES)}, which says what to write")
    trees = FORMATS[format_].write(file.vectors, file.metadata)
    paths = diffusers_files.target_paths(path, len(trees))
    check_not_existing(paths, overwrite)
    for target, tree in zip(paths, trees, strict=True):
        _write_one(target, tree, _file_metadata(file), FORMATS[format_])
    return paths


def check_not_existing(paths: Sequence[Path], overwrite: bool) -> None:
    """Raise UserError if one of `paths` exists and must not be overwritten."""
    for path in paths:
        if path.exists() and not overwrite:
            raise UserError(f"--target {path} already exists; --overwrite replaces it")


def _token_from_file_name(path: Path) -> str:
    """Return the placeholder token of an embedding whose file does not name it."""
    name = file_name(str(path))
    token = names.token_from_name(name)
    if token != name:
        log.info("%s: %r cannot be a placeholder token; write %s in prompts", str(path), name, token)
    return token


def _read_one(path: Path) -> EmbeddingFile:
    tree: formats.Tree
    if torch_format.is_torch_file(path):
        content = torch_format.read(path)
        tree = content if isinstance(content, dict) else {}
        metadata = {key: value for key, value in tree.items() if isinstance(value, str | int | float)}
    else:
        tensor_file = containers.read(path)
        tree, metadata = tensor_file.tensors, dict(tensor_file.metadata)
    name = formats.detect(tree)
    try:
        vectors = FORMATS[name].read(tree) if name else {}
        if name and vectors:
            file = EmbeddingFile(name, vectors, metadata)
            for token in vectors:
                file.token_metadata(token)
            return file
    except DamagedFileError as error:
        raise UserError(f"{path} holds {error}: the file is damaged, or another program's") from error
    other = detect.detect_other_model(map(str, tree), "base")
    hint = f"it seems to be {other}" if other else "it holds no embedding vectors; training writes *_ti.ckpt"
    raise UserError(f"{path} is not an embedding file: {hint}")


def _write_one(path: Path, tree: Mapping[str, Any], metadata: Mapping[str, str | int], format_: Format) -> None:
    if path.suffix in _TORCH_SUFFIXES:
        torch_format.write(path, {**tree, **metadata} if format_.extra_entries else tree)
        if not format_.extra_entries and metadata.get("pooling") != format_.pooling:
            log.warning(
                "%s cannot hold the pooling rule of its embeddings and will be read as %s; write it as .safetensors",
                path,
                format_.pooling,
            )
        return
    if not all(isinstance(value, np.ndarray) for value in tree.values()):
        raise UserError(f"{path} can hold tensors only, and the format needs more; write it as .pt")
    tensors = {key: in_memory(value) for key, value in tree.items()}
    containers.write(path, tensors, {"format": "pt", **metadata} if path.suffix != ".ckpt" else metadata)


def _file_metadata(file: EmbeddingFile) -> Mapping[str, str | int]:
    """Return the entries beside the vectors."""
    by_token = {token: file.token_metadata(token) for token in file.vectors}
    if len(by_token) > 1:
        return {**merge_metadata({token or "": entry for token, entry in by_token.items()})}
    ((token, vectors),) = file.vectors.items()
    return file_metadata(token, len(next(iter(vectors.values()))), by_token[token])


def _metadata_entry(embedding: Embedding) -> dict[str, Any]:
    return {"pooling": embedding.pooling, "details": json.dumps(embedding.metadata)}


def _parse_token_metadata(path: Path, entry: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Return the pooling rule and the details."""
    pooling = entry["pooling"]
    if pooling not in POOLING_RULES:
        raise UserError(f"{path} was trained with the pooling rule {pooling!r}, which is unknown: update the toolkit")
    try:
        return pooling, parse_details(entry)
    except DamagedFileError as error:
        raise UserError(f"{path} holds {error}: the file is damaged") from error


def _check_vectors(path: Path, vectors: EncoderVectors) -> EncoderVectors:
    """Return the vectors in the order of the encoders; UserError if one is missing or they contradict each other."""
    if missing := formats.missing_encoder(vectors):
        raise UserError(
            f"{path} lacks the vectors of {missing}; SDXL needs both text encoders: train the embedding on SDXL"
        )
    ordered = {encoder: vectors[encoder] for encoder in ENCODERS}
    arrays = list(ordered.values())
    if any(array.ndim != 2 or not len(array) or len(array) != len(arrays[0]) for array in arrays):
        shapes = " and ".join(str(list(array.shape)) for array in arrays)
        raise UserError(
            f"{path} holds vectors of shape {shapes}; each text encoder needs [num_vectors, width] with the same "
            "num_vectors: the file is damaged"
        )
    if not all(np.isfinite(array).all() for array in arrays):
        raise UserError(
            f"{path} holds vectors that are not finite: the file is damaged, or its training diverged; use another"
        )
    return ordered
