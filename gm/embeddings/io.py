"""Embedding files: `<version>_<step>_ti.ckpt`, `.safetensors`, and the files of other programs.

The `.ckpt` has the four entries of mindone's SDXL files alone, because mindone takes every other entry for a token
table (gm/modules/textual_inversion/manager.py there); `pooling`, `details` (JSON: base model, step, seed, training
options) and other programs' metadata are notes that MindSpore does not see. The `.safetensors` holds the vectors as
`clip_l` and `clip_g`, as AUTOMATIC1111, ComfyUI and diffusers read them, and the rest as metadata.

The files of Stable Diffusion 1 and 2 have one tensor, in the `.ckpt` under the name of their token table, in the
`.safetensors` as `clip_l` or `clip_h`, and no pooling rule.

`load` and `load_all` return embeddings that a family of models can use. `read_file` and `write_file` take any file.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np

from gm.config import POOLING_RULES
from gm.config.model import FAMILIES
from gm.embeddings import cog_files, diffusers_files, encoders, names
from gm.embeddings.embedding import NO_POOLING, UNKNOWN_POOLING, Embedding, file_name
from gm.embeddings.embedding_file import EmbeddingFile
from gm.embeddings.encoders import ALL_ENCODERS, EncoderVectors, ForeignEmbeddingError
from gm.embeddings.formats import TokenVectors
from gm.embeddings.metadata import parse_details
from gm.embeddings.reading import read_one
from gm.embeddings.writing import SAVE_FORMATS, SUFFIXES, check_not_existing, save, to_embedding_file, write_file
from gm.errors import DamagedFileError, UserError
from gm.text.tokenizer import check_length, has_unprintable

__all__ = [
    "SAVE_FORMATS",
    "SUFFIXES",
    "EmbeddingFile",
    "check_not_existing",
    "load",
    "load_all",
    "log_remarks",
    "read_file",
    "save",
    "to_embedding_file",
    "write_file",
]

log = logging.getLogger("gm")


def load(path: str | Path, family: str | None = "sdxl") -> Embedding:
    """Read an embedding file of one placeholder token for all text encoders of `family`.

    Raises UserError if it holds several embeddings or lacks a text encoder, and as `load_all` does.
    """
    embeddings = load_all(path, family)
    if len(embeddings) > 1:
        tokens = ", ".join(embedding.placeholder_token for embedding in embeddings)
        raise UserError(f"{path} holds several embeddings ({tokens}); give a file that holds one")
    is_of_sdxl = embeddings[0].pooling != NO_POOLING
    if is_of_sdxl and (missing := encoders.missing_encoder(embeddings[0].vectors)):
        raise UserError(
            f"{path} lacks the vectors of {missing}; SDXL needs both text encoders here: train the embedding in both"
        )
    return embeddings[0]


def load_all(path: str | Path, family: str | None = "sdxl") -> list[Embedding]:
    """Read the embeddings in a file of any program, as `read_file` does, for models of `family` (None: any).

    An embedding whose placeholder token is not in the file gets the token in `token_identifier.txt` beside
    `learned_embeds`, or the one that the name of the file stands for (`gm.embeddings.names`), and so does one whose
    name cannot be a placeholder token; `file=<token>` chooses another. One that was trained in one of SDXL's text
    encoders has vectors for that alone, and a warning says so. Raises UserError for a file that is not an embedding
    file, was trained on another model, contradicts itself, is damaged, or holds vectors that are not finite, or a name
    that is too long or cannot be printed.
    """
    path, chosen_token = names.split_token(path)
    file = read_file(path)
    log_remarks(file, path)
    token_entry = file.metadata.get("placeholder_token")
    if file.format in ("mindspore", "mindspore_sd") and not token_entry and not chosen_token:
        for vectors in file.vectors.values():
            _check_vectors(path, file, vectors, family)
        raise UserError(f"{path} does not name its placeholder token (placeholder_token); save it again with one")
    if chosen_token and len(file.vectors) > 1:
        tokens = ", ".join(map(str, file.vectors))
        raise UserError(f'"={chosen_token}" renames one embedding, and {path} holds several ({tokens})')
    return [
        Embedding(
            chosen_token or _usable_token(path, token or str(token_entry or "")) or _token_from_file_name(path),
            _check_vectors(path, file, vectors, family),
            *_parse_token_metadata(path, file, token, _is_of_sd(file, vectors, family)),
            source=str(path),
        )
        for token, vectors in file.vectors.items()
    ]


def log_remarks(file: EmbeddingFile, path: str | Path) -> None:
    """Log the parts of `file`, which was read from `path`, that are not used or are used in another place."""
    for remark in file.remarks:
        log.warning("%s: %s", path, remark)


def read_file(path: str | Path) -> EmbeddingFile:
    """Read an embedding file of any program, or the folder or one of the files that diffusers or cog-sdxl writes.

    A placeholder token that such a file does not name may stand in `token_identifier.txt` or `special_params.json`
    beside it. Raises UserError for a file that is not an embedding file, is damaged, or repeats an embedding. A PyTorch
    file is never executed.
    """
    path = Path(path)
    paths = diffusers_files.find_files(path)
    files = [read_one(each) for each in paths]
    parts: dict[str | None, list[EncoderVectors]] = {}
    for file in files:
        for token, embedding in file.vectors.items():
            parts.setdefault(token, []).append(embedding)
    vectors: TokenVectors = {token: diffusers_files.join_vectors(path, each) for token, each in parts.items()}
    metadata = {**files[-1].metadata, **files[0].metadata}
    identifier = "" if metadata.get("placeholder_token") else diffusers_files.read_identifier(paths[0])
    if identifier and list(vectors) == [None]:
        vectors = {identifier: vectors[None]}
    if files[0].format == "cog" and not metadata.get("placeholder_token"):
        vectors = cog_files.name_tokens(paths[0], vectors)
    remarks = tuple(remark for file in files for remark in file.remarks)
    unused = tuple(key for file in files for key in file.unused)
    return dataclasses.replace(files[0], vectors=vectors, metadata=metadata, unused=unused, remarks=remarks)


def _usable_token(path: Path, token: str) -> str:
    """Return the placeholder token of a file, in another spelling if no prompt could contain it; it may be empty.

    Raises UserError for a name that is too long or cannot be printed.
    """
    try:
        check_length(token)
    except UserError as error:
        raise UserError(f"{path}: {error}: the file is damaged, or another program's") from error
    if has_unprintable(token):
        raise UserError(
            f"{path}: placeholder {token!r} contains characters that cannot be printed: the file is damaged, or "
            "another program's"
        )
    usable = names.token_from_name(token) if token else ""
    if usable != token:
        log.warning("%s: %r cannot be a placeholder token; write %s in prompts", path, token, usable)
    return usable


def _token_from_file_name(path: Path) -> str:
    """Return the placeholder token of an embedding whose file does not name it."""
    name = file_name(str(path))
    token = names.token_from_name(name)
    if token != name:
        log.info("%s: %r cannot be a placeholder token; write %s in prompts", str(path), name, token)
    return token


def _parse_token_metadata(
    path: Path, file: EmbeddingFile, token: str | None, is_of_sd: bool
) -> tuple[str, dict[str, Any]]:
    """Return the pooling rule, and the details with the entries of other programs."""
    entry = file.token_metadata(token)
    pooling = NO_POOLING if is_of_sd else entry.get("pooling", UNKNOWN_POOLING)
    if pooling not in (*POOLING_RULES, UNKNOWN_POOLING, NO_POOLING):
        raise UserError(f"{path} was trained with the pooling rule {pooling!r}, which is unknown: update the toolkit")
    try:
        return pooling, {**file.other_metadata(token), **parse_details(entry)}
    except DamagedFileError as error:
        raise UserError(f"{path} holds {error}: the file is damaged") from error


def _check_vectors(path: Path, file: EmbeddingFile, vectors: EncoderVectors, family: str | None) -> EncoderVectors:
    """Return the vectors in the order of the encoders; UserError if they contradict each other or `family`."""
    if not _is_of_sd(file, vectors, family):
        _check_model(path, file, vectors)
    elif family is not None:
        (encoder,) = FAMILIES[family].text_encoders
        try:
            vectors = encoders.for_only_encoder(vectors, encoder, FAMILIES[family].title)
        except ForeignEmbeddingError as error:
            raise UserError(f"{path} holds {error}") from error
    ordered = {encoder: vectors[encoder] for encoder in ALL_ENCODERS if encoder in vectors}
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
    announced = file.metadata.get("num_vectors", len(arrays[0]))
    if len(file.vectors) == 1 and str(announced) != str(len(arrays[0])):
        raise UserError(f"{path} says num_vectors {announced} and holds {len(arrays[0])}: the file is damaged")
    return ordered


def _is_of_sd(file: EmbeddingFile, vectors: EncoderVectors, family: str | None) -> bool:
    """Return whether `vectors` are to be used as those of Stable Diffusion 1 or 2."""
    if family is not None:
        return not FAMILIES[family].class_embedding
    return file.is_of_sd(vectors)


def _check_model(path: Path, file: EmbeddingFile, vectors: EncoderVectors) -> None:
    """Raise UserError if the vectors are another model's; warn if one of SDXL's text encoders has none."""
    try:
        encoders.check_model(vectors)
    except ForeignEmbeddingError as error:
        raise UserError(f"{path} holds {error}") from error
    missing = encoders.missing_encoder(vectors)
    architecture = str(file.metadata.get("modelspec.architecture", "")).partition("/")[0]
    is_sdxl = file.is_of_sdxl(vectors)
    if not missing:
        if architecture and not is_sdxl:
            log.warning("%s says that it was trained on %s; expect little of it here", path, architecture)
        return
    others = [key for key in file.unused if not key.endswith("_out")]
    if not is_sdxl or others:
        description = f"one with {encoders.describe_other_key(others[0]) or others[0]}" if others else architecture
        raise UserError(
            f"{path} lacks the vectors of {missing}; SDXL needs both text encoders, and the embedding was trained on "
            f"another model ({description or 'probably Stable Diffusion 1'}): train it on SDXL"
        )
    log.warning("%s has no vectors for %s, which gets zeros in their place", path, missing)
