"""How each program calls the rows of a concept; docs/formats.md has the table.

A file is recognised by the names in it, never by its ending. What is read are parts: the rows of one word in one
encoder; `files` joins them to concepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gm.weights.lazy import LazyTensor

ROWS_1 = "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.embedding_table"
ROWS_2 = "conditioner.embedders.1.model.token_embedding.embedding_table"
_MOST_ROWS = 75  # that a prompt has room for
UNNAMED = "*"  # AUTOMATIC1111 calls every word so, and finds it by the file's name

Tree = Mapping[str, Any]  # of a file: tensors, words and numbers by name, in PyTorch's files dicts of these, too


@dataclass(frozen=True)
class Part:
    """The rows [n, width] of `word` (None: the file does not say it) in `encoder` 1 or 2 (None: nor that)."""

    word: str | None
    encoder: int | None
    rows: np.ndarray


@dataclass(frozen=True)
class Format:
    """What a program writes: how a file of it is known, its parts, and the pooling rule its words are learned under."""

    program: str
    known: Callable[[Tree], bool]
    parts: Callable[[Tree], Iterator[Part]]
    pooling: str


def recognised(tree: Tree) -> Format | None:
    """Return the format of a file that holds `tree`, None for none that is known."""
    return next((each for each in FORMATS if each.known(tree)), None)


def _named(first: str, second: str) -> tuple[Callable[[Tree], bool], Callable[[Tree], Iterator[Part]]]:
    """Return what knows, and what reads, a file of one word with these names of its rows."""
    names = {first: 1, second: 2}

    def parts(tree: Tree) -> Iterator[Part]:
        for name, encoder in names.items():
            if name in tree:
                yield Part(None, encoder, _rows(tree[name]))

    return lambda tree: not names.keys().isdisjoint(tree), parts


def _by_word(tree: Tree) -> Iterator[Part]:
    parameters = tree["string_to_param"]
    parameters = parameters.get("_parameters", parameters)
    for word, tensor in parameters.items():
        if isinstance(tensor, LazyTensor):
            name = tree.get("name") if word == UNNAMED else word
            yield Part(name if isinstance(name, str) and name else None, None, _rows(tensor))


def _words(tree: Tree) -> Iterator[Part]:
    for word, tensor in tree.items():
        yield Part(word, None, _rows(tensor))


def _are_words(tree: Tree) -> bool:
    """Whether everything in the file is a few rows of one width, by the word that they stand for."""
    if not tree or not all(isinstance(rows, LazyTensor) and 1 <= len(rows.shape) <= 2 for rows in tree.values()):
        return False
    few = all(len(rows.shape) == 1 or rows.shape[0] <= _MOST_ROWS for rows in tree.values())
    return few and len({rows.shape[-1] for rows in tree.values()}) == 1


def _emb_params(tree: Tree) -> Iterator[Part]:
    yield Part(None, 1, _rows(tree["emb_params"]))


def _rows(tensor: LazyTensor) -> np.ndarray:
    values = np.array(tensor.read(), np.float32)
    return values[None] if values.ndim == 1 else values


FORMATS = (
    Format("this toolkit and mindone", *_named(ROWS_1, ROWS_2), "argmax"),
    Format(
        "AUTOMATIC1111, the original, InvokeAI",
        lambda tree: isinstance(tree.get("string_to_param"), dict),
        _by_word,
        "end_of_text",
    ),
    Format("kohya, SD 1.5", lambda tree: "emb_params" in tree, _emb_params, "end_of_text"),
    Format("ComfyUI, AUTOMATIC1111, kohya, OneTrainer", *_named("clip_l", "clip_g"), "end_of_text"),
    Format("cog-sdxl", *_named("text_encoders_0", "text_encoders_1"), "argmax"),
    Format("oss-roettger", *_named("emb", "emb2"), "argmax"),
    Format("diffusers", _are_words, _words, "argmax"),
)
