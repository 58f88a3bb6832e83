"""The page that shows what a word meant before it was learned, and what it means now."""

from __future__ import annotations

from typing import Any

import streamlit as st

from demo.app import watch
from demo.app.model import Choice
from demo.app.options import kept
from demo.app.places import Places
from demo.app.server import generate_jobs
from gm.embeddings.embedding import Embedding
from gm.errors import UserError


def page(choice: Choice, places: Places) -> None:
    """Show the page."""
    known = {concept.placeholder_token: concept for found in choice.files.values() for concept in found}
    if not known:
        st.info("Choose a learned word in the sidebar, or learn one on the page Learn.")
        return
    word = st.selectbox("word", list(known), key="compared")
    prompt = st.text_input("prompt", key=kept(f"prompt of {word}", f"a {word} on a blue background"))
    plain = st.text_input(
        "the same in words it knew before", key=kept(f"plain {prompt}", prompt.replace(word, _before(known[word])))
    )
    count = st.slider("images", 1, 8, key=kept("compared images", 4))
    busy = watch.busy("comparing")
    if st.button("Compare", type="primary", icon=":material/compare:", width="stretch", disabled=busy):
        try:
            config = choice.drawing(
                prompt=prompt, num_cols=count, num_rows=1, save_path=str(places.own / "compared"), preview_interval=4
            )
            st.session_state.comparing = generate_jobs.compare(config, plain)
            st.session_state["compared texts"] = (plain, prompt, count)
            st.rerun()
        except UserError as error:
            st.session_state.comparing = None
            st.error(str(error))
    watch.show("comparing")
    _sides()


def _before(concept: Embedding) -> str:
    """Return the words that the learned rows started from, or "thing"."""
    asked = _mapping(_mapping(concept.metadata.get("recipe")).get("concept"))
    # Of several words that were learned at once, each may have its own.
    several = asked.get("concepts")
    for one in map(_mapping, several if isinstance(several, list) else []):
        if one.get("placeholder_token") == concept.placeholder_token:
            asked = {**asked, **one}
    return str(asked.get("initializer_token") or "thing")


def _mapping(found: Any) -> dict[str, Any]:
    """Return what a file's details hold, if it is a mapping: they may be anybody's."""
    return found if isinstance(found, dict) else {}


def _sides() -> None:
    paths = watch.written("comparing")
    if not paths:
        return
    plain, prompt, count = st.session_state["compared texts"]
    for column, title, text, shown in zip(
        st.columns(2), ("Before", "After"), (plain, prompt), (paths[:count], paths[count:]), strict=True
    ):
        with column:
            st.subheader(title, divider="gray")
            st.text(text)
            for path in shown:
                st.image(str(path), width="stretch")
