"""Text from files and users, shown as it is: Streamlit's messages and labels are Markdown, which may name images.

Every text that is not written in this program goes through `escape` where Streamlit takes Markdown.
"""

from __future__ import annotations

import re
import string

import streamlit as st

_MAX_LENGTH = 2000  # characters of a text; a longer one freezes the page
_ESCAPED = str.maketrans({sign: f"\\{sign}" for sign in string.punctuation})
_JOINER = "\u2060"  # invisible
# Streamlit replaces these also where their signs are escaped: addresses, and the names of emoji and icons.
_REPLACED = re.compile(r"(?<=http)(?=s?://)|(?<=https)(?=://)|(?<=www)(?=\.)|(?<=@)|(?<=:)(?=[\w/+-]+:)", re.IGNORECASE)


def escape(text: object) -> str:
    """Return Markdown that shows `text`, cut at a length, and nothing else."""
    content = str(text)
    if len(content) > _MAX_LENGTH:
        content = f"{content[:_MAX_LENGTH]}…"
    lines = [_REPLACED.sub(_JOINER, line.strip()).translate(_ESCAPED) for line in content.splitlines()]
    return "  \n".join(lines)


def unescape(markdown: str) -> str:
    """Return the text of which `escape` made `markdown`."""
    return re.sub(r"\\(.)", r"\1", markdown.replace("  \n", "\n").replace(_JOINER, ""))


def error(text: object) -> None:
    """Show an error."""
    st.error(escape(text))


def warning(text: object) -> None:
    """Show a warning."""
    st.warning(escape(text))


def caption(text: object) -> None:
    """Show a small text."""
    st.caption(escape(text))


def toast(text: object) -> None:
    """Show a note for some seconds."""
    st.toast(escape(text))
