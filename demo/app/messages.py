"""Messages as the pages show them: with the labels of the boxes and the names of the user's own files.

The toolkit's messages name the flags of its commands, and paths; on a page nobody has given a flag, and the folders of
the server are nobody's business.
"""

from __future__ import annotations

import re
from pathlib import Path

import streamlit as st

from demo.app import plain
from demo.app.app_dirs import AppDirs
from demo.app.labels import LABELS

NAMES_KEY = "upload names"  # of the names of uploaded files by the path that they are stored at, in the session state
_MAX_NAMES = 500
_BOXES = {
    **LABELS,
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "task": "Task",
    "img": "Init images",
    "mask": "Mask",
    "strength": "Denoising strength",
    "weight": "Checkpoint",
    "textual_inversion_weight": "Embeddings",
}
_FLAG = re.compile(r"(?<![\w-])--([a-z][\w-]*)")
_END = r"(?:/[^\s:;,'\"]*)?(?![^\s:;,'\"/])"


def remember_name(path: Path, name: str) -> None:
    """Remember the name that the visitor has for an uploaded file."""
    st.session_state[NAMES_KEY] = dict([*_names().items(), (str(path), name)][-_MAX_NAMES:])


def name_of(path: str | Path) -> str:
    """Return the name that the visitor has for a file."""
    return _names().get(str(path), Path(path).name)


def for_page(error: object, dirs: AppDirs) -> str:
    """Return a message with boxes in place of flags, and the visitor's names in place of paths in the app's folders."""
    text = str(error)
    for path, name in sorted(_names().items(), key=lambda each: -len(each[0])):
        text = text.replace(path, name)
    for folder in dirs.folders:
        for form in dict.fromkeys((str(folder.absolute()), str(folder))):
            if form not in (".", "/"):
                text = re.sub(rf"(?<![\w/.-]){re.escape(form)}{_END}", lambda match: Path(match[0]).name, text)
    return _FLAG.sub(lambda match: _box(match[1]), text)


def error(text: object, dirs: AppDirs) -> None:
    """Show an error."""
    plain.error(for_page(text, dirs))


def _box(flag: str) -> str:
    name = flag.replace("-", "_")
    return f'"{_BOXES[name]}"' if name in _BOXES else name.replace("_", " ")


def _names() -> dict[str, str]:
    names = st.session_state.get(NAMES_KEY)
    if not isinstance(names, dict):
        return {}
    return {path: name for path, name in names.items() if isinstance(path, str) and isinstance(name, str)}
