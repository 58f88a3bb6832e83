"""Takes files that are dropped anywhere on the page: a component of Streamlit, one file without dependencies.

It hands them to an upload box of the page, so that they arrive as if they had been dropped there.
"""

from __future__ import annotations

from pathlib import Path

import streamlit.components.v1 as components

_component = components.declare_component("page_drop", path=str(Path(__file__).parent))


def show(container: str, key: str) -> None:
    """Hand files that are dropped on the page, but on none of its upload boxes, to that in `container`, a key."""
    _component(target=f".st-key-{container}", key=key, default=None)
