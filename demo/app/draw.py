"""The page that draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import gallery, options, watch
from demo.app.model import Choice
from demo.app.places import Places
from demo.app.server import generate_jobs, uploads
from gm.errors import UserError

_TASKS = {"txt2img": "from noise", "img2img": "from an image", "inpaint": "behind a mask"}


def page(choice: Choice, places: Places) -> None:
    """Show the page."""
    _offer(choice.words)
    st.text_area("prompt", key="prompt", height=80, placeholder=_example(choice.words))
    st.text_input("negative prompt", key="negative_prompt", placeholder="what to keep away from")
    task = st.radio(
        "start", list(_TASKS), format_func=_TASKS.__getitem__, key="task", horizontal=True, label_visibility="collapsed"
    )
    start = _start(task, choice.config.sampling.strength)
    values = options.first(choice.config.sampling)
    button, shown = st.container(), st.container()
    values |= options.more(choice.config.sampling)
    with shown:
        busy = watch.busy("drawing")
        if button.button("Draw", type="primary", icon=":material/brush:", width="stretch", disabled=busy):
            _draw(choice, places, {**values, **start, "task": task})
        watch.show("drawing")
    gallery.show(places.own)


def _example(words: list[str]) -> str:
    return f"a {words[0]} on a blue background" if words else "a red heart on a white background"


def _offer(words: list[str]) -> None:
    """Show the learned words; one that is clicked goes to the end of the prompt."""
    if words:
        st.pills("learned words", words, key="offered", selection_mode="multi", on_change=_insert)


def _insert() -> None:
    words = [st.session_state.get("prompt", ""), *st.session_state.offered]
    st.session_state.prompt = " ".join(words).strip()
    st.session_state.offered = []


def _start(task: str, default: float) -> dict[str, Any]:
    """Show what images to start from, if any; return what was sent, unchecked."""
    if task == "txt2img":
        return {}
    given: dict[str, Any] = {}
    left, right = st.columns(2)
    with left:
        given["img"] = st.file_uploader("images to start from", accept_multiple_files=True, key="img")
    with right:
        if task == "inpaint":
            given["mask"] = st.file_uploader("mask, white where it is drawn anew", key="mask")
        st.session_state.setdefault("strength", default)
        given["strength"] = st.slider("strength", 0.0, 1.0, key="strength", help="1 forgets the image")
    _show_sent_before(given)
    return given


def _show_sent_before(given: dict[str, Any]) -> None:
    """Show what is started from where nothing is sent: the files of the recipe that is used again."""
    before = _sent_before()
    paths = [path for name in ("img", "mask") if name in given and not given[name] for path in before[name]]
    if paths:
        st.image(paths, caption=["from the recipe"] * len(paths), width=96)


def _sent_before() -> dict[str, list[str]]:
    before = st.session_state.get("sent before", {"img": [], "mask": None})
    named = {"img": before["img"], "mask": [before["mask"]] if before["mask"] else []}
    return {name: [path for path in paths if Path(path).is_file()] for name, paths in named.items()}


def _draw(choice: Choice, places: Places, values: dict[str, Any]) -> None:
    words = {"prompt": st.session_state.prompt, "negative_prompt": st.session_state.negative_prompt}
    try:
        if "img" in values:
            values["img"] = _stored(values["img"], places) or _sent_before()["img"]
        if "mask" in values:
            masks = _stored([values["mask"]] if values["mask"] else [], places) or _sent_before()["mask"]
            values["mask"] = masks[0] if masks else None
        steps = values["preview_interval"] or max(values["sample_step"] // 8, 1)
        config = choice.drawing(**{**values, **words, "save_path": str(places.own), "preview_interval": steps})
        st.session_state.drawing = generate_jobs.draw(config)
        st.rerun()
    except UserError as error:
        st.session_state.drawing = None
        st.error(str(error))


def _stored(sent: list[Any], places: Places) -> list[str]:
    if not sent:
        return []
    return [str(path) for path in uploads.images([each.getvalue() for each in sent], places.own / "sent")]
