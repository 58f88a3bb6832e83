"""Page Generate: images from a prompt, and from an init image and a mask."""

from __future__ import annotations

import os
from typing import Any

import streamlit as st

from demo.app import browser, gallery, options, plain, task_progress
from demo.app.app_dirs import AppDirs
from demo.app.server import generate_jobs, uploads
from demo.app.sidebar import ModelSelection
from gm.config import family_options
from gm.errors import UserError

TASK_KEY = "generate task"  # of the session's task, in the session state
_TASK_LABELS = {"txt2img": "txt2img", "img2img": "img2img", "inpaint": "Inpaint"}
_DEFAULT_PREVIEWS = 8  # an image, where no preview interval is set


def page(selection: ModelSelection, dirs: AppDirs) -> None:
    """Show the page."""
    _token_buttons(selection.placeholder_tokens)
    st.text_area("Prompt", key="prompt", height=80, placeholder=_example_prompt(selection.placeholder_tokens))
    st.text_input("Negative prompt", key="negative_prompt", placeholder="What the image should not show")
    if st.session_state.get("task") not in options.TASKS:
        st.session_state["task"] = options.TASKS[0]
    task = st.radio(
        "Task",
        options.TASKS,
        format_func=_TASK_LABELS.__getitem__,
        key="task",
        horizontal=True,
        label_visibility="collapsed",
    )
    inputs = _init_images(task, selection.config.sampling.strength, dirs)
    values = options.main_options(selection.config.sampling)
    button, progress = st.container(), st.container()
    hidden = family_options.inapplicable(selection.config.model)
    values |= options.more_options(selection.config.sampling, hidden)
    with progress:
        busy = task_progress.is_busy(TASK_KEY)
        if button.button("Generate", type="primary", icon=":material/brush:", width="stretch", disabled=busy):
            _generate(selection, dirs, {**values, **inputs, "task": task})
        task_progress.show(TASK_KEY)
    gallery.show(dirs.images(browser.identify()))


def _example_prompt(tokens: list[str]) -> str:
    return f"a {tokens[0]} on a blue background" if tokens else "a red heart on a white background"


def _token_buttons(tokens: list[str]) -> None:
    """Show a button for each placeholder token that appends it to the prompt."""
    if tokens:
        st.pills(
            "Add to prompt",
            tokens,
            key="token buttons",
            selection_mode="multi",
            format_func=plain.escape,  # a button's label is Markdown
            on_change=_append_tokens,
        )


def _append_tokens() -> None:
    parts = [st.session_state.get("prompt", ""), *st.session_state["token buttons"]]
    st.session_state.prompt = " ".join(parts).strip()
    st.session_state["token buttons"] = []


def _init_images(task: str, default_strength: float, dirs: AppDirs) -> dict[str, Any]:
    """Show the uploads of img2img and inpaint; return the paths of the stored files, and the denoising strength."""
    if task == "txt2img":
        return {}
    inputs: dict[str, Any] = {}
    left, right = st.columns(2)
    with left:
        files = st.file_uploader("Init images", accept_multiple_files=True, key="img")
        inputs["img"] = _kept_inputs("img", files, dirs)
    with right:
        if task == "inpaint":
            mask = st.file_uploader("Mask", key="mask", help="white is repainted, black is preserved")
            paths = _kept_inputs("mask", [mask] if mask else [], dirs)
            inputs["mask"] = paths[0] if paths else None
        if not options.between(0.0, 1.0, float)(st.session_state.get("strength")):
            st.session_state["strength"] = default_strength
        inputs["strength"] = st.slider("Denoising strength", 0.0, 1.0, key="strength", help="1 ignores the init image")
    return inputs


def _kept_inputs(name: str, files: list[Any], dirs: AppDirs) -> list[str]:
    """Return the paths of the uploads `files`, stored once, or of those of before if nothing is uploaded.

    Those of before are uploads whose widget Streamlit has emptied, and the inputs of the parameters applied last.
    """
    ids, previous = [file.file_id for file in files], st.session_state.get("previous inputs", {})
    if ids and st.session_state.get(f"{name} ids") != ids:
        try:
            contents = [file.getvalue() for file in files]
            folder = dirs.images(browser.identify()) / "init_images"
            stored = [str(path) for path in uploads.store_images(contents, folder, plain.toast)]
        except UserError as error:
            plain.error(error)
            return []
        st.session_state[f"{name} ids"] = ids
        st.session_state["previous inputs"] = previous = {**previous, name: stored}
    paths = previous.get(name) or []
    paths = [path for path in ([paths] if isinstance(paths, str) else paths) if os.path.isfile(path)]
    if paths and not files:
        st.image(paths, caption=["from before"] * len(paths), width=96)
        st.button("Remove", key=f"remove {name}", on_click=_remove_inputs, args=(name,))
    return paths


def _remove_inputs(name: str) -> None:
    st.session_state["previous inputs"] = {**st.session_state["previous inputs"], name: []}


def _generate(selection: ModelSelection, dirs: AppDirs, values: dict[str, Any]) -> None:
    """Submit the task; an error is shown on the page."""
    sampling = {
        **values,
        "prompt": st.session_state.prompt,
        "negative_prompt": st.session_state.negative_prompt,
        "save_path": str(dirs.images(browser.identify())),
        "preview_interval": values["preview_interval"] or max(values["sample_step"] // _DEFAULT_PREVIEWS, 1),
    }
    try:
        config = selection.sampling_config(**sampling)
        browser.set_task(dirs, TASK_KEY, generate_jobs.generate(config, browser.state(dirs).owner))
        st.rerun()
    except UserError as error:
        browser.set_task(dirs, TASK_KEY, None)
        plain.error(error)
