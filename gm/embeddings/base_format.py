"""Base class of the file formats of all programs, which translate between the tree of a file and vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import numpy as np

from gm.checkpoints.lazy_tensor import LazyTensor
from gm.embeddings import encoders
from gm.embeddings.encoders import ENCODERS, EncoderVectors
from gm.errors import DamagedFileError, UserError

MAX_VECTORS = 75  # as many as a prompt has room for
_MAX_BYTES = 64 * 1024 * 1024  # of vectors; an embedding has some kilobytes
_MAX_KEYS_SHOWN = 3  # in a message

Tree = Mapping[str, Any]  # a file's tensors, strings and numbers by key; PyTorch's files also nest dicts
TokenVectors = dict[str | None, EncoderVectors]  # by placeholder token, None where the file does not name it


class Format(ABC):
    """Embedding file format of one program.

    program: its name in messages; pooling: the pooling rule that its embeddings are trained with; extra_entries:
    whether its PyTorch file may hold entries beside the vectors, because the program looks vectors up by key
    """

    program: ClassVar[str]
    pooling: ClassVar[str]
    extra_entries: ClassVar[bool] = False

    @abstractmethod
    def matches(self, tree: Tree) -> bool:
        """Return whether `tree` is that of a file in this format."""

    @abstractmethod
    def read(self, tree: Tree) -> TokenVectors:
        """Return the vectors of each placeholder token.

        Raises DamagedFileError for anything else in their place, ForeignEmbeddingError for those of another model.
        """

    @abstractmethod
    def write(self, vectors: TokenVectors, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the trees of the files that hold `vectors`; UserError if the format cannot hold them."""

    def used_keys(self, tree: Tree) -> Collection[str]:
        """Return the keys of the tensors that `read` takes."""
        return tree.keys()

    def written_by(self, tree: Tree, metadata: Mapping[str, Any]) -> tuple[str, str]:
        """Return the program that wrote the file, as far as the file says, and its pooling rule."""
        return self.program, self.pooling

    def remarks(self, tree: Tree) -> list[str]:
        """Return remarks for the user: tensors that are not used, and those in a wrong place."""
        used = self.used_keys(tree)
        unused = [key for key, value in tree.items() if isinstance(value, LazyTensor) and key not in used]
        if not unused:
            return []
        names = [f"{key} ({text})" if (text := encoders.describe_other_key(key)) else str(key) for key in unused]
        more = f" and {len(names) - _MAX_KEYS_SHOWN} more" if len(names) > _MAX_KEYS_SHOWN else ""
        return [f"{', '.join(names[:_MAX_KEYS_SHOWN])}{more} not used"]


class NamedTensorsFormat(Format):
    """Format of one embedding without its placeholder token: one tensor per text encoder, under a fixed key."""

    keys: ClassVar[dict[str, str]]
    single_vector: ClassVar[bool] = False  # whether the tensor is one vector, [width]

    def matches(self, tree: Tree) -> bool:
        return any(key in tree for key in self.keys.values())

    def read(self, tree: Tree) -> TokenVectors:
        return {None: encoders.place(self._read_keys(tree))}

    def used_keys(self, tree: Tree) -> Collection[str]:
        return (*self.keys.values(), "num_vectors")

    def remarks(self, tree: Tree) -> list[str]:
        vectors = self._read_keys(tree)
        moved = [encoder for encoder, array in encoders.place(vectors).items() if array is not vectors.get(encoder)]
        return super().remarks(tree) + [
            f"vectors as wide as {ENCODERS[encoder]}, used there" for encoder in moved if encoder in ENCODERS
        ]

    def write(self, vectors: TokenVectors, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
        embedding = only_embedding(vectors, self.program)
        is_sd2 = list(embedding) == [encoders.CLIP_H] and encoders.CLIP_H in self.keys
        if not is_sd2 and (missing := encoders.missing_encoder(embedding)):
            raise UserError(f"{self.program} needs the vectors of all text encoders; those of {missing} are missing")
        count = len(next(iter(embedding.values())))
        if self.single_vector and count > 1:
            raise UserError(f"{self.program} holds one vector, and there are {count}; choose another format")
        tensors = {key: embedding[encoder] for encoder, key in self.keys.items() if encoder in embedding}
        return [{key: tensor[0] if self.single_vector else tensor for key, tensor in tensors.items()}]

    def _read_keys(self, tree: Tree) -> EncoderVectors:
        return {encoder: read_vectors(tree[key]) for encoder, key in self.keys.items() if key in tree}


def read_vectors(tensor: Any) -> np.ndarray:
    """Return vectors [num_vectors, width]; raises DamagedFileError for anything else, before it is read."""
    if not isinstance(tensor, LazyTensor):
        raise DamagedFileError(f"a {type(tensor).__name__} in place of embedding vectors")
    if not 1 <= len(tensor.shape) <= 2 or "float" not in tensor.dtype or tensor.size > _MAX_BYTES:
        raise DamagedFileError(f"{tensor.dtype} {list(tensor.shape)} in place of embedding vectors")
    with np.errstate(over="ignore"):
        values = np.array(tensor.read(), np.float32)
    return values[None] if values.ndim == 1 else values


def only_embedding(vectors: TokenVectors, program: str) -> EncoderVectors:
    """Return the only embedding; UserError if there are several."""
    if len(vectors) > 1:
        raise UserError(f"{program} holds one embedding per file, and there are {len(vectors)}; write them one by one")
    return next(iter(vectors.values()))
