"""Embedding file formats of SDXL, one class per program, and the registry of all; docs/formats.md has the table.

A file is recognized by its keys, never by its suffix.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from gm.checkpoints.lazy_tensor import LazyTensor
from gm.embeddings import encoders, onetrainer
from gm.embeddings.base_format import (
    MAX_VECTORS,
    Format,
    NamedTensorsFormat,
    TokenVectors,
    Tree,
    only_embedding,
    read_vectors,
)
from gm.embeddings.embedding import NO_POOLING, UNKNOWN_POOLING
from gm.embeddings.encoders import ENCODERS, EncoderVectors
from gm.embeddings.sd_formats import A1111Format, KohyaFormat
from gm.errors import UserError

__all__ = [
    "CLIP_G_TABLE",
    "CLIP_L_TABLE",
    "ENCODERS",
    "FORMATS",
    "ComfyUIFormat",
    "EncoderVectors",
    "Format",
    "MindoneFormat",
    "TokenVectors",
    "Tree",
    "detect",
]

CLIP_L_TABLE = "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.embedding_table"
CLIP_G_TABLE = "conditioner.embedders.1.model.token_embedding.embedding_table"
SD1_TABLE = "cond_stage_model.transformer.text_model.embeddings.token_embedding.embedding_table"
SD2_TABLE = "cond_stage_model.model.token_embedding.embedding_table"
_SD_TABLE = re.compile(r"cond_stage_model\..*embedding_table")  # mindone's own names end so, too
_KOHYA = ("https://github.com/Stability-AI/generative-models", "sd-scripts")  # how its modelspec entries begin
_PARAMETER = re.compile(r"\.(weight|bias|alpha)$")  # how the keys of a network, or of a LoRA, end
_XTI_LAYERS = {
    *(f"IN{number:02}" for number in (1, 2, 4, 5, 7, 8)),
    "MID",
    *(f"OUT{number:02}" for number in range(3, 12)),
}


class MindoneFormat(NamedTensorsFormat):
    program = "mindone's .ckpt"
    pooling = "argmax"
    keys: ClassVar = {"clip_l": CLIP_L_TABLE, "clip_g": CLIP_G_TABLE}


class MindoneSDFormat(NamedTensorsFormat):
    """MindSpore's file for Stable Diffusion 1 or 2: the vectors under the name of the only token table."""

    program = "a .ckpt for Stable Diffusion 1 or 2"
    pooling = NO_POOLING
    keys: ClassVar = {"clip_l": SD1_TABLE, encoders.CLIP_H: SD2_TABLE}

    def matches(self, tree: Tree) -> bool:
        return len(self.used_keys(tree)) == 2

    def used_keys(self, tree: Tree) -> Collection[str]:
        return (*(key for key in tree if isinstance(key, str) and _SD_TABLE.fullmatch(key)), "num_vectors")

    def write(self, vectors: TokenVectors, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
        embedding = only_embedding(vectors, self.program)
        if len(embedding) != 1 or next(iter(embedding)) not in self.keys:
            raise UserError(f"{self.program} holds vectors of its only text encoder; choose another format")
        return [{self.keys[encoder]: array for encoder, array in embedding.items()}]

    def _read_keys(self, tree: Tree) -> EncoderVectors:
        key, _ = self.used_keys(tree)
        vectors = read_vectors(tree[key])
        return {encoders.CLIP_H if key == SD2_TABLE else encoders.by_width(vectors): vectors}


class ComfyUIFormat(NamedTensorsFormat):
    """SDXL file of many programs: ComfyUI, AUTOMATIC1111, kohya's scripts, OneTrainer, invoke-training, diffusers."""

    program = "ComfyUI's .safetensors"
    pooling = UNKNOWN_POOLING
    keys: ClassVar = {"clip_l": "clip_l", "clip_g": "clip_g", encoders.CLIP_H: encoders.CLIP_H}

    def matches(self, tree: Tree) -> bool:
        return super().matches(tree) or any(f"{key}_out" in tree for key in self.keys)

    def read(self, tree: Tree) -> TokenVectors:
        vectors = super().read(tree)
        onetrainer.check_output_embedding(tree, list(vectors[None].values()))
        return vectors

    def written_by(self, tree: Tree, metadata: Mapping[str, Any]) -> tuple[str, str]:
        """Return the program and its pooling rule, unknown where the file does not tell.

        kohya's scripts write the entries of modelspec (library/sai_model_spec.py); OneTrainer alone writes output
        embeddings, and its own entries begin with ot_. The files of invoke-training, diffusers' advanced script and
        others hold two tensors and nothing else.
        """
        architecture = str(metadata.get("modelspec.architecture"))
        implementation = (metadata.get("modelspec.implementation"), metadata.get("modelspec.implementation_version"))
        if architecture.endswith("/textual-inversion") and any(str(each).startswith(_KOHYA) for each in implementation):
            return "kohya's scripts", "end_of_text"
        is_embedding_of_onetrainer = architecture.endswith("/embedding") and "diffusers" in str(implementation)
        if is_embedding_of_onetrainer or onetrainer.output_keys(tree) or any(key.startswith("ot_") for key in metadata):
            return "OneTrainer", "argmax"
        return "unknown: ComfyUI's format, which many programs write", self.pooling


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


class DiffusersFormat(Format):
    """Files of diffusers, one per text encoder: vectors by placeholder token and nothing else."""

    program = "diffusers' learned_embeds"
    pooling = "argmax"

    def matches(self, tree: Tree) -> bool:
        if not tree or not all(isinstance(token, str) and not _PARAMETER.search(token) for token in tree):
            return False
        if not all(isinstance(tensor, LazyTensor) and 1 <= len(tensor.shape) <= 2 for tensor in tree.values()):
            return False
        few = all(len(tensor.shape) == 1 or tensor.shape[0] <= MAX_VECTORS for tensor in tree.values())
        return few and len({tensor.shape[-1] for tensor in tree.values()}) == 1

    def read(self, tree: Tree) -> TokenVectors:
        if tree.keys() >= _XTI_LAYERS:
            raise encoders.ForeignEmbeddingError(
                "an embedding of extended textual inversion (kohya's train_textual_inversion_XTI.py), with vectors of "
                "their own for each of 16 layers of Stable Diffusion's UNet; train a plain one on SDXL"
            )
        arrays = {token: read_vectors(tensor) for token, tensor in tree.items()}
        return {token: {encoders.by_width(array): array} for token, array in arrays.items()}

    def write(self, vectors: TokenVectors, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
        if None in vectors:
            raise UserError("diffusers' files name their placeholder token; give --placeholder_token")
        files: list[dict[str, Any]] = [
            {str(token): embedding[encoder] for token, embedding in vectors.items() if encoder in embedding}
            for encoder in (*ENCODERS, encoders.CLIP_H)
        ]
        return [tree for tree in files if tree]


FORMATS: dict[str, Format] = {
    "mindspore": MindoneFormat(),
    "mindspore_sd": MindoneSDFormat(),
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
