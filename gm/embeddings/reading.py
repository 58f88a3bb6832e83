"""Reading of one embedding file of any container and program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gm.checkpoints import containers, detect, torch_format
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.embeddings import a1111_images, nested
from gm.embeddings.base_format import TokenVectors, Tree
from gm.embeddings.embedding import UNKNOWN_POOLING
from gm.embeddings.embedding_file import EmbeddingFile
from gm.embeddings.encoders import ForeignEmbeddingError
from gm.embeddings.formats import FORMATS
from gm.embeddings.formats import detect as detect_format
from gm.errors import DamagedFileError, UserError


def read_one(path: Path) -> EmbeddingFile:
    """Read one file; UserError if it is not an embedding file, is damaged, or belongs to another model."""
    content, metadata = _read_container(path)
    try:
        file = _read_content(content, metadata)
        if file is not None:
            for token in file.vectors:
                file.token_metadata(token)
            return file
    except DamagedFileError as error:
        raise UserError(f"{path} holds {error}: the file is damaged, or another program's") from error
    except ForeignEmbeddingError as error:
        raise UserError(f"{path} holds {error}") from error
    raise UserError(f"{path} is not an embedding file{_probable_content(content)}")


def _probable_content(content: Any) -> str:
    """Return the probable kind of a file without known embeddings, for a message."""
    keys = list(map(str, content)) if isinstance(content, dict) else []
    if other := detect.detect_other_model(keys, "base"):
        return f": it seems to be {other}"
    return ": it holds no embedding vectors; training writes *_ti.ckpt"


def _read_container(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the content of the file, mostly a tree, and its strings and numbers."""
    if not a1111_images.is_image(path) and not torch_format.is_torch_file(path):
        tensor_file = containers.read(path)
        return tensor_file.tensors, {**tensor_file.metadata, **_numbers(tensor_file.tensors)}
    content = a1111_images.read(path) if a1111_images.is_image(path) else torch_format.read(path)
    items = content.items() if isinstance(content, dict) else ()
    return content, {k: value for k, value in items if isinstance(k, str) and isinstance(value, str | int | float)}


def _numbers(tensors: Mapping[str, LazyTensor]) -> dict[str, int]:
    """Return the number of vectors that mindone's files have as a scalar."""
    tensor = tensors.get("num_vectors")
    if tensor is None or tensor.shape not in ((), (1,)) or "int" not in tensor.dtype:
        return {}
    return {"num_vectors": int(tensor.read().reshape(()))}


def _read_content(content: Any, metadata: dict[str, Any]) -> EmbeddingFile | None:
    """Return the embeddings, None if there are none."""
    if isinstance(content, LazyTensor):
        vectors = nested.tensor_vectors(content)
        return _unnamed(vectors, "unknown: a PyTorch tensor")
    if nested.is_list_of_dicts(content):
        merged = nested.merged_dicts(content)
        file = None if merged is None else _read_tree(merged, metadata)
        if file is not None and file.format != "diffusers":  # whose pooling rule is not known of a list
            return file
        return _unnamed(nested.list_vectors(content), "unknown: a list of dicts")
    if not isinstance(content, dict):
        return None
    bundles = nested.bundled_embeddings(content)
    if not bundles:
        return _read_tree(content, metadata)
    return _read_bundles(bundles, content, metadata)


def _read_tree(tree: Tree, metadata: dict[str, Any]) -> EmbeddingFile | None:
    name = detect_format(tree)
    vectors = FORMATS[name].read(tree) if name else {}
    if name is None or not vectors:
        return None
    program, pooling = FORMATS[name].written_by(tree, metadata)
    used = FORMATS[name].used_keys(tree)
    unused = tuple(key for key, value in tree.items() if isinstance(value, LazyTensor) and key not in used)
    return EmbeddingFile(name, vectors, metadata, program, pooling, unused, tuple(FORMATS[name].remarks(tree)))


def _unnamed(vectors: TokenVectors, program: str) -> EmbeddingFile:
    return EmbeddingFile("diffusers", vectors, {}, program, UNKNOWN_POOLING)


def _read_bundles(bundles: Mapping[str, Tree], content: Tree, metadata: dict[str, Any]) -> EmbeddingFile | None:
    """Return the embeddings in a LoRA file."""
    files = {token: _read_tree(tree, metadata) for token, tree in bundles.items()}
    embeddings = {token: file for token, file in files.items() if file is not None}
    if not embeddings:
        return None
    remarks = [f"{token}: {remark}" for token, file in embeddings.items() for remark in file.remarks]
    if others := files.keys() - embeddings.keys():
        remarks.append(f"no vectors that are known in the bundled {', '.join(sorted(others))}, not used")
    if rest := nested.without_bundles(content):
        remarks.append(
            f"embeddings {', '.join(embeddings)} used, the LoRA ({len(rest)} tensors and its metadata) not used here: "
            "--lora_weight merges it into a model"
        )
    first = next(iter(embeddings.values()))
    vectors: TokenVectors = {token: next(iter(file.vectors.values())) for token, file in embeddings.items()}
    unused = tuple(key for file in embeddings.values() for key in file.unused)
    return EmbeddingFile(
        first.format,
        vectors,
        nested.bundle_metadata(metadata),
        first.program,
        first.default_pooling,
        unused,
        tuple(remarks),
    )
