"""Head of every page: the title, what the app is for, and links to the pages, which a phone shows, too.

Streamlit's own navigation is hidden on a narrow screen until its sidebar is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

OPEN_KEY = "open page"  # in the session state: name of the page that a button opens
_SENTENCE = "Teach an image model something new from 3 to 20 images, and use it in prompts by its placeholder token."


def show(pages: Mapping[str, Any]) -> None:
    """Show the head; open the page that a button has asked for."""
    if (name := st.session_state.pop(OPEN_KEY, None)) in pages:
        st.switch_page(pages[str(name)])
    st.title("Textual inversion", anchor=False)
    st.caption(_SENTENCE)
    with st.container(horizontal=True, gap="small"):
        for page in pages.values():
            st.page_link(page)
