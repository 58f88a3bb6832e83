"""Prompt files: a prompt a line, each with options of its own, `a cat --n blurry --d 7 --w 768 --h 512`.

The options' letters are those of kohya's sd-scripts.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from gm.config import SamplingConfig, paths, schema
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
    """Return the prompt itself, or the lines of the text file that it names; a `literal` prompt names no file.

    Raises UserError, naming the `option`, for an empty prompt or file, for a name in .txt that is not a file, and for a
    file that is not text.
    """
    if not prompt.strip():
        raise UserError(f'{option} is empty; give a prompt, such as "a … on a table", or a text file of prompts')
    if literal:
        return [prompt]
    path = Path(paths.expand(prompt))
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # longer than the name of a file may be; with a null character
        is_file = False
    if not is_file and prompt.endswith(".txt"):
        raise UserError(f"{path} is not a file; {option} takes a prompt, or a text file with a prompt a line")
    if not is_file:
        return [prompt]
    try:
        # Not splitlines(), for which U+2028 and others end a line, too.
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{option} {prompt} is not a text file of prompts ({error}); write a prompt a line, in UTF-8"
        ) from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise UserError(f"{option} {prompt} is an empty file; write a prompt a line")
    return prompts


def parse(line: str) -> dict[str, Any]:
    """Return the options of SamplingConfig that `line` sets, `prompt` among them.

    Raises UserError for an unknown letter, a value of the wrong type, and one outside its limits.
    """
    prompt, *flags = _FLAG.split(line)
    overrides: dict[str, Any] = {"prompt": prompt.strip()}
    for letter, value in zip(flags[::2], flags[1::2], strict=True):
        if letter not in LETTERS:
            known = ", ".join(f"--{short} {name}" for short, name in LETTERS.items())
            raise UserError(f"{line!r}: --{letter} is not an option of a prompt line; known are {known}")
        name = LETTERS[letter]
        kind, _ = schema.option_type(SamplingConfig, name)
        try:
            overrides[name] = kind(value.strip())
        except ValueError as error:
            raise UserError(f"{line!r}: --{letter} {value.strip()!r} is not of type {kind.__name__}") from error
    try:
        schema.check_limits(dataclasses.replace(SamplingConfig(), **overrides))
    except UserError as error:
        raise UserError(f"{line!r}: {error}") from error
    return overrides
