"""The one exception for mistakes that the person at the keyboard can mend.

Its text is one line that names the cause and the way out; the scripts print it and exit with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something asked for cannot be done; the message says why and what to do instead.

    It stays one line whatever it quotes of a file: what cannot be printed is escaped. Below it stand the lines that
    another process `said`, if one failed.
    """

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__("\n".join(_printable(line) for line in (message, *said.splitlines())))


class DamagedFileError(Exception):
    """A file does not hold what its format asks for; the text says what."""


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the known word nearest to `word`, or `""` if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def brief(error: Exception | str, length: int = 200) -> str:
    """Return the text in one line of bounded length, for where it may hold parts of a damaged file."""
    return " ".join(str(error).split())[:length]
