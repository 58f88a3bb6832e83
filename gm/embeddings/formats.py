"""How each program calls the rows of a concept; docs/formats.md has the table.

A file is recognised by the names in it, never by its ending. Each format is two functions: from the tree of a file to
the rows of its words, and back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gm.checkpoints.lazy_tensor import LazyTensor
from gm.errors import UserError

CLIP_L_TABLE = "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.embedding_table"
CLIP_G_TABLE = "conditioner.embedders.1.model.token_embedding.embedding_table"
ENCODERS = ("CLIP-L, text encoder 1", "OpenCLIP bigG, text encoder 2")
UNNAMED = "*"  # AUTOMATIC1111 calls every word so, and finds it by the file's name
_MOST_ROWS = 75  # that a prompt has room for
_BIGG = 1280  # width of rows that are OpenCLIP bigG's where a file does not say so
_TOKEN = 265  # of "*" in CLIP's vocabulary
_LARGEST = 64 * 1024 * 1024  # bytes of rows; a learned word's are some kilobytes

Tree = Mapping[str, Any]  # of a file: tensors, words and numbers by name, in PyTorch's files dicts of these, too
EncoderVectors = tuple[
    np.ndarray | None, np.ndarray | None
]  # [n, width] float32 of CLIP-L and of bigG, None where missing
TokenVectors = dict[str | None, EncoderVectors]  # None for a word that its file does not say


class NotAnEmbedding(Exception):
    """What stands where rows should be is none; the text says what it is."""


@dataclass(frozen=True)
class Format:
    """What a program writes.

    known: whether a file's tree is of it; read: the words of that; written: the tree of one or of several words, of
    each file that they take (diffusers has one for each encoder); pooling: the rule that its words are learned under;
    notes: whether its PyTorch file may hold words beside the rows, which a program takes that asks for rows by name
    """

    program: str
    known: Callable[[Tree], bool]
    read: Callable[[Tree], TokenVectors]
    written: Callable[[TokenVectors, Mapping[str, Any]], list[dict[str, Any]]]
    pooling: str
    notes: bool = False


def detect(tree: Tree) -> str | None:
    """Return the name of the format of a file that holds `tree`, None for none that is known."""
    return next((name for name, each in FORMATS.items() if each.known(tree)), None)


def missing(rows: EncoderVectors) -> str:
    """Return the encoder whose rows are not there, "" if both are."""
    return next((name for name, own in zip(ENCODERS, rows, strict=True) if own is None), "")


def _named(program: str, first: str, second: str, pooling: str, flat: bool = False) -> Format:
    """Return the format of files of one word, whose rows have these names; `flat` if it is one row [width]."""

    def read(tree: Tree) -> TokenVectors:
        one, two = (_rows(tree[name]) if name in tree else None for name in (first, second))
        return {None: (one, two)}

    def written(words: TokenVectors, _: Mapping[str, Any]) -> list[dict[str, Any]]:
        rows = _only(words, program)
        if missing(rows):
            raise UserError(f"{program} needs the rows of both encoders; those of {missing(rows)} are missing")
        if flat and len(_both(rows)[0]) > 1:
            raise UserError(f"{program} holds one vector, and there are {len(_both(rows)[0])}; choose another format")
        return [{name: own[0] if flat else own for name, own in zip((first, second), _both(rows), strict=True)}]

    return Format(program, lambda tree: first in tree or second in tree, read, written, pooling, notes=flat)


def _read_by_word(tree: Tree) -> TokenVectors:
    parameters = tree["string_to_param"]
    parameters = parameters.get("_parameters", parameters)
    if not isinstance(parameters, dict):
        raise NotAnEmbedding("no rows by word")
    words: TokenVectors = {}
    for word, tensor in parameters.items():
        if isinstance(tensor, LazyTensor):
            called = tree.get("name") if word == UNNAMED else word
            words[called if isinstance(called, str) and called else None] = _placed(_rows(tensor))
    return words


def _write_by_word(words: TokenVectors, notes: Mapping[str, Any]) -> list[dict[str, Any]]:
    one = len(words) == 1
    rows = {UNNAMED if one or word is None else word: _clip_l(rows, _BY_WORD) for word, rows in words.items()}
    tokens = {word: np.array([_TOKEN], np.int64) for word in rows}
    kept = {name: notes.get(name) for name in ("step", "sd_checkpoint", "sd_checkpoint_name")}
    return [{"string_to_token": tokens, "string_to_param": rows, "name": next(iter(words)) or "", **kept}]


def _read_words(tree: Tree) -> TokenVectors:
    return {word: _placed(_rows(tensor)) for word, tensor in tree.items()}


def _write_words(words: TokenVectors, _: Mapping[str, Any]) -> list[dict[str, Any]]:
    if None in words:
        raise UserError("diffusers' files say their word; give --placeholder_token")
    files: list[dict[str, Any]] = [
        {str(word): rows[k] for word, rows in words.items() if rows[k] is not None} for k in (0, 1)
    ]
    return [tree for tree in files if tree]


def _are_words(tree: Tree) -> bool:
    """Whether everything in the file is a few rows of one width, by the word that they stand for."""
    if not tree or not all(isinstance(word, str) for word in tree):
        return False
    if not all(isinstance(rows, LazyTensor) and 1 <= len(rows.shape) <= 2 for rows in tree.values()):
        return False
    few = all(len(rows.shape) == 1 or rows.shape[0] <= _MOST_ROWS for rows in tree.values())
    return few and len({rows.shape[-1] for rows in tree.values()}) == 1


def _placed(rows: np.ndarray) -> EncoderVectors:
    return (None, rows) if rows.shape[-1] == _BIGG else (rows, None)


def _rows(tensor: Any) -> np.ndarray:
    """Return rows [n, width]; raises Unfit for anything else, before it is read."""
    if not isinstance(tensor, LazyTensor):
        raise NotAnEmbedding(f"a {type(tensor).__name__} where rows should be")
    if not 1 <= len(tensor.shape) <= 2 or "float" not in tensor.dtype or tensor.size > _LARGEST:
        raise NotAnEmbedding(f"{tensor.dtype} {list(tensor.shape)} where rows should be")
    with np.errstate(over="ignore"):
        values = np.array(tensor.read(), np.float32)
    return values[None] if values.ndim == 1 else values


def _only(words: TokenVectors, program: str) -> EncoderVectors:
    if len(words) > 1:
        raise UserError(f"{program} holds one word a file, and there are {len(words)}; write them one by one")
    return next(iter(words.values()))


def _both(rows: EncoderVectors) -> tuple[np.ndarray, np.ndarray]:
    one, two = rows
    assert one is not None
    assert two is not None
    return one, two


def _clip_l(rows: EncoderVectors, program: str) -> np.ndarray:
    """Return the rows of CLIP-L; UserError if there are others, too, which would be lost, or none."""
    one, two = rows
    if one is None or two is not None:
        raise UserError(f"{program} holds rows of CLIP-L alone, as Stable Diffusion 1.5 has them; choose another")
    return one


_BY_WORD, _KOHYA = "AUTOMATIC1111's .pt", "kohya's SD 1.5 file"
FORMATS = {
    "mindspore": _named("mindone's .ckpt", CLIP_L_TABLE, CLIP_G_TABLE, "argmax"),
    "a1111": Format(
        _BY_WORD,
        lambda tree: isinstance(tree.get("string_to_param"), dict),
        _read_by_word,
        _write_by_word,
        "end_of_text",
        notes=True,
    ),
    "kohya": Format(
        _KOHYA,
        lambda tree: "emb_params" in tree,
        lambda tree: {None: (_rows(tree["emb_params"]), None)},
        lambda words, _: [{"emb_params": _clip_l(_only(words, _KOHYA), _KOHYA)}],
        "end_of_text",
    ),
    "clip": _named("ComfyUI's .safetensors", "clip_l", "clip_g", "end_of_text"),
    "cog": _named("cog-sdxl's embeddings.pti", "text_encoders_0", "text_encoders_1", "argmax"),
    "roettger": _named("oss-roettger's .pt", "emb", "emb2", "argmax", flat=True),
    "diffusers": Format("diffusers' learned_embeds", _are_words, _read_words, _write_words, "argmax"),
}
