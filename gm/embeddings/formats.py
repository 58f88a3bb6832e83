"""Embedding file formats, one class per program; docs/formats.md has the table.

A file is recognized by its keys, never by its suffix. A format translates between the tree of a file and the embedding
vectors of its placeholder tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from gm.checkpoints.lazy_tensor import LazyTensor
from gm.errors import DamagedFileError, UserError

ENCODERS = {"clip_l": "CLIP-L, text encoder 1", "clip_g": "OpenCLIP bigG, text encoder 2"}  # SDXL's, narrowest first
CLIP_L_TABLE = "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.embedding_table"
CLIP_G_TABLE = "conditioner.embedders.1.model.token_embedding.embedding_table"
_A1111_TOKEN = "*"  # AUTOMATIC1111's name of every embedding; the program takes the name of the file
_A1111_TOKEN_ID = 265  # of "*" in CLIP's vocabulary
_MAX_VECTORS = 75  # as many as a prompt has room for
_BIGG_WIDTH = 1280  # vectors of this width are OpenCLIP bigG's where a file does not name the encoder
_MAX_BYTES = 64 * 1024 * 1024  # of vectors; an embedding has some kilobytes

Tree = Mapping[str, Any]  # a file's tensors, strings and numbers by key; PyTorch's files also nest dicts
EncoderVectors = dict[str, np.ndarray]  # float32 [num_vectors, width] by encoder name; encoders may be missing
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
        """Return the vectors of each placeholder token; raises DamagedFileError for anything else in their place."""

    @abstractmethod
    def write(self, vectors: TokenVectors, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the trees of the files that hold `vectors`; UserError if the format cannot hold them."""


class NamedTensorsFormat(Format):
    """Format of one embedding without its placeholder token: one tensor per text encoder, under a fixed key."""

    keys: ClassVar[dict[str, str]]
    single_vector: ClassVar[bool] = False  # whether the tensor is one vector, [width]

    def matches(self, tree: Tree) -> bool:
        return any(key in tree for key in self.keys.values())

    def read(self, tree: Tree) -> TokenVectors:
        return {None: {encoder: _read_vectors(tree[key]) for encoder, key in self.keys.items() if key in tree}}

    def write(self, vectors: TokenVectors, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
        embedding = _only_embedding(vectors, self.program)
        if missing := missing_encoder(embedding):
            raise UserError(f"{self.program} needs the vectors of all text encoders; those of {missing} are missing")
        count = len(next(iter(embedding.values())))
        if self.single_vector and count > 1:
            raise UserError(f"{self.program} holds one vector, and there are {count}; choose another format")
        tensors = {key: embedding[encoder] for encoder, key in self.keys.items()}
        return [{key: tensor[0] if self.single_vector else tensor for key, tensor in tensors.items()}]


class MindoneFormat(NamedTensorsFormat):
    program = "mindone's .ckpt"
    pooling = "argmax"
    keys: ClassVar = {"clip_l": CLIP_L_TABLE, "clip_g": CLIP_G_TABLE}


class ComfyUIFormat(NamedTensorsFormat):
    """SDXL file of ComfyUI, which AUTOMATIC1111 and kohya's scripts share."""

    program = "ComfyUI's .safetensors"
    pooling = "end_of_text"
    keys: ClassVar = {"clip_l": "clip_l", "clip_g": "clip_g"}


class CogSDXLFormat(NamedTensorsFormat):
    program = "cog-sdxl's embeddings.pti"
    pooling = "argmax"
    keys: ClassVar = {"clip_l": "text_encoders_0", "clip_g": "text_encoders_1"}


class OssRoettgerFormat(NamedTensorsFormat):
    program = "oss-roettger's .pt"
    pooling = "argmax"
    extra_entries = True
    keys: ClassVar = {"clip_l": "emb", "clip_g": "emb2"}
    single_vector = True


class A1111Format(Format):
    """Stable Diffusion 1.5 file of AUTOMATIC1111; InvokeAI's holds several placeholder tokens."""

    program = "AUTOMATIC1111's .pt"
    pooling = "end_of_text"
    extra_entries = True

    def matches(self, tree: Tree) -> bool:
        return isinstance(tree.get("string_to_param"), dict)

    def read(self, tree: Tree) -> TokenVectors:
        parameters = tree["string_to_param"]
        parameters = parameters.get("_parameters", parameters)
        if not isinstance(parameters, dict):
            raise DamagedFileError("no vectors by placeholder token")
        vectors: TokenVectors = {}
        for key, tensor in parameters.items():
            if isinstance(tensor, LazyTensor):
                token = tree.get("name") if key == _A1111_TOKEN else key
                vectors[token if isinstance(token, str) and token else None] = _by_width(_read_vectors(tensor))
        return vectors

    def write(self, vectors: TokenVectors, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
        single = len(vectors) == 1
        parameters = {
            _A1111_TOKEN if single or token is None else token: _only_clip_l(embedding, self.program)
            for token, embedding in vectors.items()
        }
        tokens = {token: np.array([_A1111_TOKEN_ID], np.int64) for token in parameters}
        others = {key: metadata.get(key) for key in ("step", "sd_checkpoint", "sd_checkpoint_name")}
        name = next(iter(vectors)) or ""
        return [{"string_to_token": tokens, "string_to_param": parameters, "name": name, **others}]


class KohyaFormat(Format):
    """Stable Diffusion 1.5 file of kohya's scripts."""

    program = "kohya's SD 1.5 file"
    pooling = "end_of_text"

    def matches(self, tree: Tree) -> bool:
        return "emb_params" in tree

    def read(self, tree: Tree) -> TokenVectors:
        return {None: {"clip_l": _read_vectors(tree["emb_params"])}}

    def write(self, vectors: TokenVectors, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"emb_params": _only_clip_l(_only_embedding(vectors, self.program), self.program)}]


class DiffusersFormat(Format):
    """Files of diffusers, one per text encoder: vectors by placeholder token and nothing else."""

    program = "diffusers' learned_embeds"
    pooling = "argmax"

    def matches(self, tree: Tree) -> bool:
        if not tree or not all(isinstance(token, str) for token in tree):
            return False
        if not all(isinstance(tensor, LazyTensor) and 1 <= len(tensor.shape) <= 2 for tensor in tree.values()):
            return False
        few = all(len(tensor.shape) == 1 or tensor.shape[0] <= _MAX_VECTORS for tensor in tree.values())
        return few and len({tensor.shape[-1] for tensor in tree.values()}) == 1

    def read(self, tree: Tree) -> TokenVectors:
        return {token: _by_width(_read_vectors(tensor)) for token, tensor in tree.items()}

    def write(self, vectors: TokenVectors, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
        if None in vectors:
            raise UserError("diffusers' files name their placeholder token; give --placeholder_token")
        files: list[dict[str, Any]] = [
            {str(token): embedding[encoder] for token, embedding in vectors.items() if encoder in embedding}
            for encoder in ENCODERS
        ]
        return [tree for tree in files if tree]


FORMATS: dict[str, Format] = {
    "mindspore": MindoneFormat(),
    "a1111": A1111Format(),
    "kohya": KohyaFormat(),
    "clip": ComfyUIFormat(),
    "cog": CogSDXLFormat(),
    "roettger": OssRoettgerFormat(),
    "diffusers": DiffusersFormat(),
}


def detect(tree: Tree) -> str | None:
    """Return the name of the format of a file that holds `tree`, None if no format matches."""
    return next((name for name, format_ in FORMATS.items() if format_.matches(tree)), None)


def missing_encoder(vectors: EncoderVectors) -> str:
    """Return the description of the first text encoder without vectors, "" if none is missing."""
    return next((description for encoder, description in ENCODERS.items() if encoder not in vectors), "")


def _by_width(vectors: np.ndarray) -> EncoderVectors:
    return {"clip_g" if vectors.shape[-1] == _BIGG_WIDTH else "clip_l": vectors}


def _read_vectors(tensor: Any) -> np.ndarray:
    """Return vectors [num_vectors, width]; raises DamagedFileError for anything else, before it is read."""
    if not isinstance(tensor, LazyTensor):
        raise DamagedFileError(f"a {type(tensor).__name__} in place of embedding vectors")
    if not 1 <= len(tensor.shape) <= 2 or "float" not in tensor.dtype or tensor.size > _MAX_BYTES:
        raise DamagedFileError(f"{tensor.dtype} {list(tensor.shape)} in place of embedding vectors")
    with np.errstate(over="ignore"):
        values = np.array(tensor.read(), np.float32)
    return values[None] if values.ndim == 1 else values


def _only_embedding(vectors: TokenVectors, program: str) -> EncoderVectors:
    if len(vectors) > 1:
        raise UserError(f"{program} holds one embedding per file, and there are {len(vectors)}; write them one by one")
    return next(iter(vectors.values()))


def _only_clip_l(vectors: EncoderVectors, program: str) -> np.ndarray:
    """Return the vectors of CLIP-L; UserError if there are none, or others that would be lost."""
    if set(vectors) != {"clip_l"}:
        raise UserError(f"{program} holds vectors of CLIP-L alone, as Stable Diffusion 1.5 has them; choose another")
    return vectors["clip_l"]
