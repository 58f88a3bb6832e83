"""Formats of embeddings for models with one text encoder: Stable Diffusion 1 (CLIP-L) and 2 (OpenCLIP H)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import numpy as np

from gm.checkpoints.lazy_tensor import LazyTensor
from gm.embeddings import encoders
from gm.embeddings.base_format import Format, TokenVectors, Tree, only_embedding, read_vectors
from gm.embeddings.encoders import EncoderVectors
from gm.embeddings.onetrainer import check_output_embedding
from gm.errors import DamagedFileError, UserError

_A1111_TOKEN = "*"  # AUTOMATIC1111's name of every embedding; the program takes the name of the file
_A1111_TOKEN_ID = 265  # of "*" in CLIP's vocabulary
_KOHYA_KEY, _ONETRAINER_KEY = "emb_params", "emp_params"


class A1111Format(Format):
    """File of AUTOMATIC1111; InvokeAI's holds several placeholder tokens."""

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
                array = read_vectors(tensor)
                vectors[token if isinstance(token, str) and token else None] = {encoders.by_width(array): array}
        return vectors

    def used_keys(self, tree: Tree) -> Collection[str]:
        return ()

    def write(self, vectors: TokenVectors, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
        single = len(vectors) == 1
        parameters = {
            _A1111_TOKEN if single or token is None else token: _only_encoder(embedding, self.program)
            for token, embedding in vectors.items()
        }
        tokens = {token: np.array([_A1111_TOKEN_ID], np.int64) for token in parameters}
        others = {key: metadata.get(key) for key in ("sd_checkpoint", "sd_checkpoint_name")}
        step = metadata.get("step")
        others["step"] = int(step) if isinstance(step, str) and step.isdecimal() else step
        name = next(iter(vectors)) or ""
        return [{"string_to_token": tokens, "string_to_param": parameters, "name": name, **others}]


class KohyaFormat(Format):
    """File of kohya's scripts; OneTrainer has a spelling of its own."""

    program = "kohya's SD 1.5 file"
    pooling = "end_of_text"
    keys: ClassVar = (_KOHYA_KEY, _ONETRAINER_KEY)

    def matches(self, tree: Tree) -> bool:
        return any(key in tree or f"{key}_out" in tree for key in self.keys)

    def read(self, tree: Tree) -> TokenVectors:
        arrays = {key: read_vectors(tree[key]) for key in self.keys if key in tree}
        check_output_embedding(tree, list(arrays.values()))
        array = next(iter(arrays.values()))
        return {None: {encoders.by_width(array): array}}

    def used_keys(self, tree: Tree) -> Collection[str]:
        return [key for key in self.keys if key in tree][:1]

    def written_by(self, tree: Tree, metadata: Mapping[str, Any]) -> tuple[str, str]:
        return (self.program, self.pooling) if _KOHYA_KEY in tree else ("OneTrainer", "argmax")

    def write(self, vectors: TokenVectors, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{_KOHYA_KEY: _only_encoder(only_embedding(vectors, self.program), self.program)}]


def _only_encoder(vectors: EncoderVectors, program: str) -> np.ndarray:
    """Return the vectors of Stable Diffusion's text encoder; UserError if there are none, or others would be lost."""
    if len(vectors) != 1 or next(iter(vectors)) not in encoders.SD_ENCODERS:
        raise UserError(
            f"{program} holds vectors of one text encoder, that of Stable Diffusion 1 or 2; choose another --format"
        )
    return next(iter(vectors.values()))
