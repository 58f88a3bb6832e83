"""Page Compare: the same seeds with an embedding's prompt and with a baseline prompt of words the model knows."""

from __future__ import annotations

from typing import Any

import streamlit as st

from demo.app import browser, plain, task_progress
from demo.app.app_dirs import AppDirs
from demo.app.options import between, persistent_key
from demo.app.server import generate_jobs
from demo.app.sidebar import ModelSelection
from gm.embeddings.embedding import Embedding
from gm.errors import UserError

TASK_KEY = "compare task"  # of the session's task, in the session state
_DEFAULT_TOKEN = "thing"  # in the baseline prompt, where the embedding names no initializer token
_PREVIEW_INTERVAL = 4
_MAX_TOKEN = 200  # characters of an initializer token in a file


def page(selection: ModelSelection, dirs: AppDirs) -> None:
    """Show the page."""
    by_token = {e.placeholder_token: e for loaded in selection.embeddings.values() for e in loaded}
    if not by_token:
        st.info("Select an embedding in the sidebar, or train one on the page Train.")
        return
    if st.session_state.get("compared embedding") not in by_token:
        st.session_state.pop("compared embedding", None)
    token = st.selectbox("Embedding", list(by_token), key="compared embedding")
    prompt = st.text_input("Prompt", key=persistent_key(f"prompt of {token}", f"a {token} on a blue background"))
    initializer = initializer_token(by_token[token])
    baseline = st.text_input(
        "Baseline prompt",
        key=persistent_key(f"baseline of {prompt}", prompt.replace(token, initializer)),
        help="the same prompt in words that the model knows without the embedding",
    )
    count = st.slider("Images", 1, 8, key=persistent_key("compared images", 4, between(1, 8)))
    busy = task_progress.is_busy(TASK_KEY)
    if st.button("Compare", type="primary", icon=":material/compare:", width="stretch", disabled=busy):
        sampling = {
            "prompt": prompt,
            "num_cols": count,
            "num_rows": 1,
            "save_path": str(dirs.images(browser.identify()) / "compare"),
            "preview_interval": _PREVIEW_INTERVAL,
        }
        try:
            config = selection.sampling_config(**sampling)
            browser.set_task(dirs, TASK_KEY, generate_jobs.compare(config, baseline, browser.state(dirs).owner))
            st.session_state["compared prompts"] = [baseline, prompt, count]
            st.rerun()
        except UserError as error:
            browser.set_task(dirs, TASK_KEY, None)
            plain.error(error)
    task_progress.show(TASK_KEY)
    _side_by_side()


def initializer_token(embedding: Embedding) -> str:
    """Return the initializer token in the embedding's metadata, or a neutral noun if it names none."""
    concept = _as_mapping(_as_mapping(embedding.metadata.get("recipe")).get("concept"))
    # Each of several concepts that were trained together may have its own.
    concepts = concept.get("concepts")
    for each in map(_as_mapping, concepts if isinstance(concepts, list) else []):
        if each.get("placeholder_token") == embedding.placeholder_token:
            concept = {**concept, **each}
    token = str(concept.get("initializer_token") or "").strip()
    return token if 0 < len(token) <= _MAX_TOKEN and token.isprintable() else _DEFAULT_TOKEN


def _as_mapping(value: Any) -> dict[str, Any]:
    """Return `value` if it is a mapping, else an empty one: a file's metadata may come from any program."""
    return value if isinstance(value, dict) else {}


def _side_by_side() -> None:
    paths = task_progress.image_paths(TASK_KEY)
    if not paths:
        return
    baseline, prompt, count = st.session_state["compared prompts"]
    left, right = st.columns(2)
    with left:
        st.subheader("Baseline", divider="gray")
        _images(baseline, paths[:count])
    with right:
        st.subheader("With embedding", divider="gray")
        _images(prompt, paths[count:])


def _images(prompt: str, paths: list[Any]) -> None:
    st.text(prompt)
    for path in paths:
        st.image(str(path), width="stretch")
