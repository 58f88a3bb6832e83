"""Syntax of other programs' prompts that has no meaning here, refused by name: as text it would change the image."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gm.errors import UserError, shorten

_LORAS = {"lora": "a LoRA", "lyco": "a LyCORIS"}
_NETWORKS = {"hypernet": "a hypernetwork"}
_SYNTAX = (
    # AUTOMATIC1111: modules/prompt_parser.py (re_AND), modules/extra_networks.py (re_extra_net).
    ("AND", re.compile(r"\bAND\b")),
    ("network", re.compile(r"<(?P<kind>[A-Za-z]\w*):(?P<rest>[^<>]+)>")),
    # compel, which InvokeAI uses: ("a", "b").blend(0.7, 0.3), ("a", "b").and(), a (cat).swap(dog).
    ("compel", re.compile(r"(?<=\))\.(?:blend|and|swap)\(")),
    # ComfyUI and AUTOMATIC1111's extension Dynamic Prompts: one of them at random.
    ("choice", re.compile(r"\{[^{}\[\]]*\|[^{}\[\]]*\}")),
)


def check(prompt: str, placeholder_spans: Sequence[tuple[int, int]]) -> None:
    """Raise UserError if `prompt` has syntax of another program, except inside placeholder tokens.

    An escaped character is text and ends it: ``<lora\\:name>``.
    """
    for name, pattern in _SYNTAX:
        for match in pattern.finditer(prompt):
            if not any(start <= match.start() < end for start, end in placeholder_spans):
                raise UserError(_message(name, match))


def _message(name: str, match: re.Match) -> str:
    text = shorten(match[0], 60)
    if name == "AND":
        return 'AND in the prompt combines prompts in AUTOMATIC1111, which is not supported; write "and" for the word'
    if name == "network":
        kind = match["kind"].lower()
        if kind in _LORAS:
            name, _, strength = match["rest"].partition(":")
            file = f"{name}.safetensors" + (f":{strength}" if re.fullmatch(r"-?[\d.]+", strength) else "")
            return (
                f"{text} in the prompt asks for {_LORAS[kind]}, which no prompt loads, and is no placeholder token; "
                f"remove it and give --lora_weight {shorten(file, 60)}"
            )
        network = _NETWORKS.get(kind, "an extra network")
        return f"{text} in the prompt asks for {network}, which is not supported, and no placeholder token; remove it"
    if name == "compel":
        return (
            f"{text}…) in the prompt is compel's syntax (InvokeAI), which is not supported; write a prompt without it"
        )
    return f"{text} in the prompt is a random choice in ComfyUI, which is not supported; write the text that you mean"
