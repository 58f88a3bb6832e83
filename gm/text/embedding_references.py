"""Embeddings as the prompts of other programs name them, rewritten to placeholder tokens.

- ComfyUI: ``embedding:name``, ``embedding:name.safetensors``, ``embedding:folder/name``, where the name is the file's
  (comfy/sd1_clip.py, `tokenize_with_weights` and `load_embed`); ``(embedding:name:1.2)`` is such a name with a weight.
- SwarmUI: ``<embed:name>`` and ``<embedding:name>``.
- InvokeAI: ``<name>``.

A name is a placeholder token, with or without its angle brackets, or the name of its embedding file. Upper and lower
case are the same.
"""

from __future__ import annotations

from collections import Counter

import regex

from gm.errors import UserError, did_you_mean
from gm.text.tokenizer import Tokenizer

_FOLDERS = r"(?:[^\s,:()\[\]|<>]*[/\\])?"
_SUFFIX = r"(?:\.(?:safetensors|ckpt|pt|bin|pti))?"
_END = r"(?![\p{L}\p{N}_/\\-])(?!\.[\p{L}\p{N}])"  # of a name: `toy` is neither in `toy-2` nor in `toy.v2`
_ESCAPE = r"\\([()\[\]|:])"
_UNKNOWN = r"(?P<unknown>[^\s,:()\[\]|<>]+)"


def resolve(prompt: str, tokenizer: Tokenizer) -> str:
    """Return `prompt` with the placeholder token in place of every reference to an embedding.

    Text that is a placeholder token as it stands is left alone. Raises UserError for ``embedding:name`` if no embedding
    of that name is registered: ComfyUI leaves it out of the prompt.
    """
    names = _reference_names(tokenizer)
    spans = tokenizer.placeholder_spans(prompt)

    def replacement(match: regex.Match) -> str:
        if any(start <= match.start() < end for start, end in spans):
            return match[0]
        if match["unknown"]:
            raise UserError(_unknown_message(match["unknown"], names))
        name = regex.sub(_ESCAPE, r"\1", match["name"] or match["bare"])
        return f" {names[name.lower()]} "  # apart from the text around it, which may be letters

    return regex.sub(_pattern(names, tokenizer), replacement, prompt, flags=regex.IGNORECASE)


def _reference_names(tokenizer: Tokenizer) -> dict[str, str]:
    """Return every name of an embedding, in lower case → its placeholder token.

    A placeholder token comes before a file's name. A name that two files have is none.
    """
    names = {token.lower(): token for token in tokenizer.placeholders}
    for token in tokenizer.placeholders:
        names.setdefault(token.removeprefix("<").removesuffix(">").lower(), token)
    count = Counter(name.lower() for name in tokenizer.file_names.values())
    for token, name in tokenizer.file_names.items():
        if count[name.lower()] == 1:
            names.setdefault(name.lower(), token)
    return names


def _pattern(names: dict[str, str], tokenizer: Tokenizer) -> str:
    """Return the pattern of a reference: the group `name` or `bare` is one of the `names`, `unknown` another."""
    name = _alternatives(names)
    bare = _alternatives([token for token in tokenizer.placeholders if not token.startswith("<")])
    known = f"{_FOLDERS}(?P<name>{name}){_SUFFIX}"
    return (
        rf"<embed(?:ding)?:(?:{known}|{_UNKNOWN})>|<(?P<bare>{bare})>"
        rf"|(?<![\p{{L}}\p{{N}}_<])embedding:(?:{known}{_END}|{_UNKNOWN})"
    )


def _alternatives(names: dict[str, str] | list[str]) -> str:
    """Return the pattern of one of the `names`, the longest first, also with its brackets escaped as in prompts."""
    patterns = (
        "".join(rf"\\?{regex.escape(c)}" if c in r"()[]|:" else regex.escape(c) for c in name)
        for name in sorted(names, key=len, reverse=True)
    )
    return "|".join(patterns) or r"(?!)"


def _unknown_message(name: str, names: dict[str, str]) -> str:
    tokens = ", ".join(dict.fromkeys(names.values())) or "none"
    return (
        f"the prompt asks for embedding:{name}, and no such embedding is loaded (loaded: {tokens}); give its file to "
        f"--textual_inversion_weight{did_you_mean(name.lower(), names)}"
    )
