"""Text encoders whose vectors embedding files hold, by key and by width.

OneTrainer writes one embedding for all text encoders of a model under `clip_l`, `clip_g`, `t5`, `llama`, `gemma` and
so on (its modules/modelSaver/*/*EmbeddingSaver.py), ComfyUI reads the same with names such as `t5xxl`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

ENCODERS = {"clip_l": "CLIP-L, text encoder 1", "clip_g": "OpenCLIP bigG, text encoder 2"}  # SDXL's, narrowest first
CLIP_H = "clip_h"  # Stable Diffusion 2's only text encoder, OpenCLIP H
ALL_ENCODERS = (*ENCODERS, CLIP_H)
SD_ENCODERS = ("clip_l", CLIP_H)  # the only text encoder of Stable Diffusion 1 or 2
_BY_WIDTH = {768: "clip_l", 1024: CLIP_H, 1280: "clip_g"}
_OTHER_MODELS = {
    1024: "OpenCLIP H has them, the text encoder of Stable Diffusion 2",
    2304: "Gemma 2 has them, the text encoder of Sana and Lumina 2",
    3584: "Qwen 2.5 has them, the text encoder of Qwen-Image",
    4096: "T5 and Llama have them, text encoders of Stable Diffusion 3, Flux, PixArt and HiDream",
}
_OTHER_KEYS = {
    r".*_out": "OneTrainer's output embedding",
    r"(um|by|pile_)?t5\w*": "T5, of Stable Diffusion 3, Flux and others",
    r"llama\w*": "Llama, of HiDream and HunyuanVideo",
    r"gemma\w*": "Gemma, of Sana and Lumina 2",
    r"qwen\w*": "Qwen, of Qwen-Image and others",
}

EncoderVectors = dict[str, np.ndarray]  # float32 [num_vectors, width] by encoder name; encoders may be missing


class ForeignEmbeddingError(Exception):
    """An embedding that SDXL's text encoders cannot take; the message names the content of the file and the remedy."""


def by_width(vectors: np.ndarray) -> str:
    """Return the text encoder of vectors [n, width] in a file that does not name it; ForeignEmbeddingError if unknown.

    Widths that no published text encoder has count as CLIP-L's.
    """
    width = vectors.shape[-1]
    if width in _OTHER_MODELS and width not in _BY_WIDTH:
        raise ForeignEmbeddingError(_foreign_width(width))
    return _BY_WIDTH.get(width, "clip_l")


def place(vectors: EncoderVectors) -> EncoderVectors:
    """Return `vectors` under the text encoder whose width they have, in the order of the encoders.

    Raises ForeignEmbeddingError for the width of another model, for two encoders of one width, and for vectors of
    Stable Diffusion 2 beside others.
    """
    placed: EncoderVectors = {}
    for encoder, array in vectors.items():
        width = array.shape[-1]
        if width in _OTHER_MODELS and (width not in _BY_WIDTH or len(vectors) > 1):
            raise ForeignEmbeddingError(_foreign_width(width))
        actual = _BY_WIDTH.get(width, encoder)
        if actual in placed:
            raise ForeignEmbeddingError(f"vectors of {width} values for both text encoders; get the file again")
        placed[actual] = array
    return {encoder: placed[encoder] for encoder in ALL_ENCODERS if encoder in placed}


def check_model(vectors: EncoderVectors) -> None:
    """Raise ForeignEmbeddingError for vectors that no text encoder of SDXL takes."""
    if CLIP_H in vectors:
        raise ForeignEmbeddingError(_foreign_width(vectors[CLIP_H].shape[-1]))


def for_only_encoder(vectors: EncoderVectors, encoder: str, title: str) -> EncoderVectors:
    """Return `vectors` under the only text `encoder` of a model; `title` is the model's in messages.

    Files do not all name the encoder: vectors of a width that no published encoder has belong to it, too. Raises
    ForeignEmbeddingError for vectors of other encoders.
    """
    if list(vectors) == [encoder]:
        return vectors
    arrays = list(vectors.values())
    if len(arrays) == 1 and arrays[0].shape[-1] not in _BY_WIDTH:
        return {encoder: arrays[0]}
    widths = " and ".join(str(array.shape[-1]) for array in arrays)
    owners = {"clip_l": "Stable Diffusion 1", CLIP_H: "Stable Diffusion 2", "clip_g": "SDXL"}
    owner = owners[list(vectors)[-1]]
    raise ForeignEmbeddingError(
        f"vectors of {widths} values, an embedding of {owner}; the model is {title}: train it there, or use a model of "
        f"{owner}"
    )


def describe_other_key(key: Any) -> str:
    """Return the description of a tensor of this key that SDXL does not use, "" if it is not known."""
    return next((text for pattern, text in _OTHER_KEYS.items() if re.fullmatch(pattern, str(key))), "")


def missing_encoder(vectors: EncoderVectors) -> str:
    """Return the description of the first text encoder without vectors, "" if none is missing."""
    return next((description for encoder, description in ENCODERS.items() if encoder not in vectors), "")


def _foreign_width(width: int) -> str:
    owner = _OTHER_MODELS.get(width, "clip_h names the text encoder of Stable Diffusion 2")
    return f"vectors of {width} values, an embedding of another model ({owner}); train the embedding on SDXL"
