"""Embedding files as other programs have them: read by what they hold, written as they are asked for.

`files` makes concepts of them; here a word may have rows in one encoder only, as those of Stable Diffusion 1.5 have.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gm.checkpoints import containers, detect, torch_format
from gm.checkpoints.lazy_tensor import in_memory
from gm.embeddings import formats, notes
from gm.embeddings.formats import FORMATS, EncoderVectors, TokenVectors
from gm.errors import UserError, shorten

log = logging.getLogger("gm")

IDENTIFIER = "token_identifier.txt"
_LONGEST = 1000  # characters of it
ENDINGS = (".ckpt", ".safetensors", ".pti", ".pt", ".bin")
_TORCH = (".pt", ".bin")
# diffusers writes a file for each encoder, `learned_embeds-steps-500.safetensors` and `learned_embeds_2-steps-500`.
_OF_A_PAIR = re.compile(r"(learned_embeds)(_2)?((?:-steps-\d+)?\.(?:safetensors|bin))")


@dataclass(frozen=True)
class EmbeddingFile:
    """What an embedding file holds: the name of its format, its words' rows, and what else it says, by name."""

    format: str
    words: TokenVectors
    notes: dict[str, Any] = field(default_factory=dict)

    def own(self, word: str | None) -> dict[str, str]:
        """Return what is noted of one word: "pooling", the rule it was learned under, and "details" if there are."""
        return notes.of_word(self.notes, word, FORMATS[self.format].pooling)


def read(path: str | Path) -> EmbeddingFile:
    """Read an embedding file of any program, or the folder or one of the two files that diffusers writes for a word.

    The word that such a file does not say may stand in `token_identifier.txt` beside it. Raises UserError for what is
    no embedding file, is damaged, or has rows twice. A PyTorch file is never run.
    """
    path = Path(path)
    paths = _files(path)
    found = [_read(each) for each in paths]
    words: TokenVectors = {}
    for learned in found:
        for word, rows in learned.words.items():
            words[word] = _joined(path, words.get(word), rows)
    noted = {**found[-1].notes, **found[0].notes}
    called = "" if noted.get("placeholder_token") else _identifier(paths[0])
    if called and list(words) == [None]:
        words = {called: words[None]}
    return EmbeddingFile(found[0].format, words, noted)


def write(learned: EmbeddingFile, path: str | Path, format_: str, overwrite: bool = False) -> list[Path]:
    """Write the words to `path` in another format, each file whole or not at all; return the paths.

    The container is that of the ending. diffusers' second file is put beside the first. Pooling rules and details go
    along; a warning says where a PyTorch file cannot hold them. Raises UserError for an ending or a format that cannot
    hold the words, and for a file that is there and not to be overwritten.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise UserError(f"{path} must end in {', '.join(ENDINGS)}, which says what to write")
    trees = FORMATS[format_].written(learned.words, learned.notes)
    paths = [path, path.with_name(f"{path.stem}_2{path.suffix}")][: len(trees)]
    match = _OF_A_PAIR.fullmatch(path.name)
    if len(trees) == 2 and match:
        paths[1] = path.with_name(f"{match[1]}_2{match[3]}")
    check_not_existing(paths, overwrite)
    for target, tree in zip(paths, trees, strict=True):
        _write(target, tree, _said(learned), FORMATS[format_])
    return paths


def check_not_existing(paths: Sequence[Path], overwrite: bool) -> None:
    """Raise UserError if one of `paths` is there and not to be overwritten."""
    for path in paths:
        if path.exists() and not overwrite:
            raise UserError(f"--target {path} already exists; --overwrite replaces it")


def _said(learned: EmbeddingFile) -> dict[str, str | int]:
    """Return the entries that tell of the words beside their rows."""
    own = {word: learned.own(word) for word in learned.words}
    if len(own) > 1:
        return {**notes.merged({word or "": said for word, said in own.items()})}
    ((word, rows),) = learned.words.items()
    return notes.entries(word, len(next(each for each in rows if each is not None)), own[word])


def _write(path: Path, tree: Mapping[str, Any], said: Mapping[str, str | int], format_: formats.Format) -> None:
    if path.suffix in _TORCH:
        torch_format.write(path, {**tree, **said} if format_.notes else tree)
        if not format_.notes and said.get("pooling") != format_.pooling:
            log.warning(
                "%s cannot say under which pooling rule its words were learned, and counts as %s when read; "
                "write it as .safetensors",
                *(path, format_.pooling),
            )
        return
    if not all(isinstance(value, np.ndarray) for value in tree.values()):
        raise UserError(f"{path} holds tensors alone, and the format more; write it as .pt")
    tensors = {name: in_memory(value) for name, value in tree.items()}
    containers.write(path, tensors, {"format": "pt", **said} if path.suffix != ".ckpt" else said)


def _files(path: Path) -> list[Path]:
    """Return the file, or the two that belong together."""
    if path.is_dir():
        found = sorted((_steps(p), p) for p in path.iterdir() if (m := _OF_A_PAIR.fullmatch(p.name)) and not m[2])
        if not found:
            raise UserError(f"{path} is a folder without learned_embeds.safetensors; give an embedding file")
        path = found[-1][1]
    match = _OF_A_PAIR.fullmatch(path.name)
    if match is None:
        return [path]
    pair = [path.with_name(f"{match[1]}{second}{match[3]}") for second in ("", "_2")]
    return [each for each in pair if each.exists()] or [path]


def _identifier(path: Path) -> str:
    """Return the word that stands beside a file of diffusers', as in the Hub's sd-concepts-library; "" if none does."""
    beside = path.with_name(IDENTIFIER)
    if not _OF_A_PAIR.fullmatch(path.name) or not beside.is_file():
        return ""
    try:
        with beside.open(encoding="utf-8") as file:
            return file.read(_LONGEST).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{beside} does not hold a word: {shorten(error)}") from error


def _steps(path: Path) -> float:
    number = re.search(r"-steps-(\d+)", path.name)
    return float(number[1]) if number else float("inf")  # the last file is the one without a number


def _read(path: Path) -> EmbeddingFile:
    tree: formats.Tree
    if torch_format.is_one(path):
        made = torch_format.read(path)
        tree = made if isinstance(made, dict) else {}
        noted = {name: value for name, value in tree.items() if isinstance(value, str | int | float)}
    else:
        contents = containers.read(path)
        tree, noted = contents.tensors, dict(contents.metadata)
    name = formats.detect(tree)
    try:
        words = FORMATS[name].read(tree) if name else {}
    except formats.NotAnEmbedding as error:
        raise UserError(f"{path} holds {error}: the file is damaged, or another program's") from error
    if name is None or not words:
        seems = detect.other_model(map(str, tree), "base")
        hint = f"it seems to be {seems}" if seems else "it holds no token rows; training writes *_ti.ckpt"
        raise UserError(f"{path} is no embedding file: {hint}")
    learned = EmbeddingFile(name, words, noted)
    try:
        for word in words:
            learned.own(word)
    except notes.Unreadable as error:
        raise UserError(f"{path} holds {error}: the file is damaged") from error
    return learned


def _joined(path: Path, one: EncoderVectors | None, other: EncoderVectors) -> EncoderVectors:
    """Return the rows of a word from two files, which need not say of which encoder they are: CLIP-L's are narrower."""
    if one is None:
        return other
    found = [rows for rows in (*one, *other) if rows is not None]
    if len(found) != 2:
        raise UserError(f"{path} holds a word {len(found)} times: the files do not belong together")
    first, second = sorted(found, key=lambda rows: rows.shape[-1])
    return first, second
