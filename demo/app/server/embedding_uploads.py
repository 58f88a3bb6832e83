"""Uploaded embedding files: checked by their content and stored under generated names.

diffusers writes an embedding as two files, one for each text encoder, and the Hub's sd-concepts-library puts the
placeholder token beside them; uploaded together they are one embedding.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from demo.app.server import uploads
from gm.config.model import FAMILIES
from gm.embeddings import io as embedding_io
from gm.embeddings import names
from gm.embeddings.diffusers_files import IDENTIFIER
from gm.embeddings.embedding import file_name
from gm.embeddings.formats import TokenVectors
from gm.embeddings.io import EmbeddingFile
from gm.errors import UserError

MAX_BYTES = 20 * 10**6  # of a file
MAX_FILES = 50  # per upload
_IGNORED = ("type_of_concept.txt",)  # beside the files in sd-concepts-library; says nothing of the embedding
_PAIR = ("learned_embeds.safetensors", "learned_embeds_2.safetensors")  # names by which the files are found together


@dataclass(frozen=True)
class _Upload:
    """One uploaded file: its name on the user's machine, its bytes and what it holds."""

    name: str
    content: bytes
    file: EmbeddingFile

    @property
    def is_half(self) -> bool:
        """Whether it holds vectors of one text encoder only, as each file of diffusers does."""
        return all(len(vectors) == 1 for vectors in self.file.vectors.values())

    @property
    def pair(self) -> tuple[str, ...]:
        """Key that the files of one embedding share: the training step and the placeholder tokens, or the name."""
        step = re.search(r"-steps-\d+", self.name)
        tokens = [str(token) for token in self.file.vectors if token is not None]
        return (step[0] if step else "", *(tokens or [re.sub(r"_2(?=\W|$)", "", self.name)]))

    @property
    def widths(self) -> set[int]:
        return {array.shape[-1] for vectors in self.file.vectors.values() for array in vectors.values()}


def store_embeddings(files: Sequence[tuple[str, bytes]], folder: Path, family: str = "sdxl") -> list[Path]:
    """Store the embedding files, (name, content) of each, in `folder`; return the path of each embedding.

    They must be embeddings of `family`. The name of a file serves as placeholder token where the file holds none, so
    that the same content under two names is two embeddings. Raises UserError, before anything is stored, if one of the
    files cannot be used.
    """
    if len(files) > MAX_FILES:
        raise UserError(f"{len(files)} files were uploaded; upload at most {MAX_FILES}")
    named = [(PureWindowsPath(name).name, content) for name, content in files]
    for name, content in named:
        uploads.check_size(content, MAX_BYTES, f"the embedding file {name}")
    identifier = next((content for name, content in named if name == IDENTIFIER), None)
    embeddings = [_read(name, content) for name, content in named if name not in (IDENTIFIER, *_IGNORED)]
    if not embeddings:
        raise UserError("no embedding file was uploaded; choose at least one")
    pairs: dict[tuple[str, ...], list[_Upload]] = {}
    for upload in embeddings:
        parts = pairs.setdefault(upload.pair, []) if upload.is_half else []
        if upload.is_half and all(upload.content != part.content for part in parts):
            parts.append(upload)
    singles = [upload for upload in embeddings if not upload.is_half]
    for upload in singles:
        _check([upload], None, family)
    for pair in pairs.values():
        _check(pair, identifier, family)
    format_ = "mindspore" if FAMILIES[family].class_embedding else "mindspore_sd"
    paths = [_store_single(upload, folder, format_) for upload in singles]
    paths += [_store_pair(pair, identifier, folder) for pair in pairs.values()]
    return list(dict.fromkeys(paths))


def store_embedding(content: bytes, name: str, folder: Path) -> Path:
    """Store one embedding file as `store_embeddings` does."""
    return store_embeddings([(name, content)], folder)[0]


def _read(name: str, content: bytes) -> _Upload:
    """Return an upload with what it holds; UserError, with its `name`, if that is no embedding."""
    with tempfile.TemporaryDirectory() as temporary:
        path = uploads.store(content, Path(temporary), "upload.safetensors")  # the format is detected by content
        try:
            return _Upload(name, content, embedding_io.read_file(path))
        except UserError as error:
            raise UserError(str(error).replace(str(path), name)) from error


def _check(parts: Sequence[_Upload], identifier: bytes | None, family: str) -> None:
    """Raise UserError, with the names of the files, if they are not one file's embeddings, complete and usable."""
    file_names = " and ".join(part.name for part in parts)
    if len(parts) > 2 or (len(parts) == 2 and parts[0].widths == parts[1].widths):
        raise UserError(
            f"{file_names} hold the same placeholder token for the same text encoder; upload one "
            f"{' and one '.join(_PAIR)} of a training step"
        )
    with tempfile.TemporaryDirectory() as temporary:
        path = _write_parts(parts, identifier, Path(temporary))
        try:
            embedding_io.load_all(path, family)
        except UserError as error:
            is_half = len(parts) == 1 and parts[0].is_half
            way_out = "; if it is one of diffusers' two files, upload both together" if is_half else ""
            raise UserError(str(error).replace(str(path), file_names) + way_out) from error


def _store_single(upload: _Upload, folder: Path, format_: str) -> Path:
    """Store a file that is complete, as it is if it names its placeholder token, else in `format_`."""
    if None not in upload.file.vectors or upload.file.metadata.get("placeholder_token"):
        return uploads.store(upload.content, folder, f"{uploads.hash_of(upload.content)}.safetensors")
    token = names.token_from_name(file_name(upload.name))
    vectors: TokenVectors = {each or token: vectors for each, vectors in upload.file.vectors.items()}
    uploads.make_folder(folder)
    path = folder / f"{uploads.hash_of(upload.content, token.encode())}.ckpt"
    embedding_io.write_file(dataclasses.replace(upload.file, vectors=vectors), path, format_, overwrite=True)
    return path


def _store_pair(parts: Sequence[_Upload], identifier: bytes | None, folder: Path) -> Path:
    """Store the files of one embedding unchanged in a folder of their own; return the path of the first."""
    name = uploads.hash_of(*sorted(part.content for part in parts), identifier or b"")
    return _write_parts(parts, identifier, folder / name)


def _write_parts(parts: Sequence[_Upload], identifier: bytes | None, folder: Path) -> Path:
    """Write the files of one embedding to `folder` as diffusers names them; return the path of the first."""
    ordered = sorted(parts, key=lambda part: min(part.widths))
    paths = [uploads.store(part.content, folder, name) for part, name in zip(ordered, _PAIR, strict=False)]
    if identifier is None and None in ordered[0].file.vectors:
        identifier = names.token_from_name(file_name(ordered[0].name)).encode()
    if identifier is not None:
        uploads.store(identifier, folder, IDENTIFIER)
    return paths[0]
