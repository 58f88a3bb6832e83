"""The exceptions that the toolkit raises on purpose, and helpers for their messages.

`UserError` is for what the user can correct: the scripts print its one line and exit with code 2. `DamagedFileError` is
for code that reads a file format: the caller that has the path catches it and raises a UserError.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A request that cannot be carried out; the message names the cause and the remedy.

    The message is one line whatever it quotes of a file: characters that cannot be printed are escaped. The lines of
    `details`, such as the output of a process that failed, follow below it.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__("\n".join(_printable(line) for line in (message, *details.splitlines())))


class DamagedFileError(Exception):
    """Bytes that contradict the format of their file; the message names the contradiction, without the file's path."""


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the known name closest to `name`, or `""` if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def shorten(error: Exception | str, length: int = 200) -> str:
    """Return the text on one line of bounded length, for messages that quote parts of a damaged file."""
    return " ".join(str(error).split())[:length]
