"""Prompts as people write them in lines, each with options of its own: `a cat --n blurry --d 7 --w 768 --h 512`.

The letters are those that users of kohya's sd-scripts know.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from gm.config import SamplingConfig, schema
from gm.errors import UserError

LETTERS = {
    "n": "negative_prompt",
    "w": "width",
    "h": "height",
    "d": "seed",
    "s": "sample_step",
    "l": "guidance_scale",
}
_FLAG = re.compile(r"(?:^|\s)--(\w+)(?=\s|$)")


def read(prompt: str, option: str, literal: bool = False) -> list[str]:
    """Return the prompt itself, or the lines of the text file that it names; UserError, naming the `option`, if empty.

    Raises UserError, too, for a name that ends in .txt of a file that is not there, and for a file that is no text. A
    `literal` prompt names no file.
    """
    if not prompt.strip():
        raise UserError(f'there is nothing to draw; give {option} "a … on a table", or a text file of prompts')
    if literal:
        return [prompt]
    try:
        is_file = Path(prompt).is_file()
    except OSError:  # longer than a file's name may be
        is_file = False
    if not is_file and prompt.endswith(".txt"):
        raise UserError(
            f"there is not a file {prompt}; {option} is what to draw, or a text file of prompts that exists"
        )
    if not is_file:
        return [prompt]
    try:
        lines = [line.strip() for line in Path(prompt).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{option} {prompt} is no text file of prompts ({error}); write one a line, in UTF-8"
        ) from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise UserError(f"{option} {prompt} is an empty file; write a prompt a line")
    return prompts


def parse(line: str, sampling: SamplingConfig) -> SamplingConfig:
    """Return `sampling` with the prompt and the options of `line`; UserError for an unknown or impossible one."""
    prompt, *rest = _FLAG.split(line)
    chosen: dict[str, object] = {"prompt": prompt.strip()}
    for letter, text in zip(rest[::2], rest[1::2], strict=True):
        if letter not in LETTERS:
            known = ", ".join(f"--{short} {name}" for short, name in LETTERS.items())
            raise UserError(f"{line!r}: --{letter} is no option of a line; there are {known}")
        name = LETTERS[letter]
        kind, _ = schema.option_type(SamplingConfig, name)
        try:
            chosen[name] = kind(text.strip())
        except ValueError as error:
            raise UserError(f"{line!r}: --{letter} {text.strip()!r} is not of type {kind.__name__}") from error
    made = dataclasses.replace(sampling, **chosen)  # type: ignore[arg-type]
    try:
        schema.check_limits(made)
    except UserError as error:
        raise UserError(f"{line!r}: {error}") from error
    return made
