"""Page Generate: images from a prompt, and from an init image and a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import gallery, options, task_progress
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
    task = st.radio(
        "Task",
        list(_TASK_LABELS),
        format_func=_TASK_LABELS.__getitem__,
        key="task",
        horizontal=True,
        label_visibility="collapsed",
    )
    inputs = _init_images(task, selection.config.sampling.strength)
    values = options.main_options(selection.config.sampling)
    button, progress = st.container(), st.container()
    hidden = family_options.inapplicable(selection.config.model)
    values |= options.more_options(selection.config.sampling, hidden)
    with progress:
        busy = task_progress.is_busy(TASK_KEY)
        if button.button("Generate", type="primary", icon=":material/brush:", width="stretch", disabled=busy):
            _generate(selection, dirs, {**values, **inputs, "task": task})
        task_progress.show(TASK_KEY)
    gallery.show(dirs.session_images)


def _example_prompt(tokens: list[str]) -> str:
    return f"a {tokens[0]} on a blue background" if tokens else "a red heart on a white background"


def _token_buttons(tokens: list[str]) -> None:
    """Show a button for each placeholder token that appends it to the prompt."""
    if tokens:
        st.pills("Add to prompt", tokens, key="token buttons", selection_mode="multi", on_change=_append_tokens)


def _append_tokens() -> None:
    parts = [st.session_state.get("prompt", ""), *st.session_state["token buttons"]]
    st.session_state.prompt = " ".join(parts).strip()
    st.session_state["token buttons"] = []


def _init_images(task: str, default_strength: float) -> dict[str, Any]:
    """Show the uploads of img2img and inpaint; return the uploaded files, unchecked, and the denoising strength."""
    if task == "txt2img":
        return {}
    inputs: dict[str, Any] = {}
    left, right = st.columns(2)
    with left:
        inputs["img"] = st.file_uploader("Init images", accept_multiple_files=True, key="img")
    with right:
        if task == "inpaint":
            inputs["mask"] = st.file_uploader("Mask", key="mask", help="white is repainted, black is preserved")
        st.session_state.setdefault("strength", default_strength)
        inputs["strength"] = st.slider("Denoising strength", 0.0, 1.0, key="strength", help="1 ignores the init image")
    _show_previous_inputs(inputs)
    return inputs


def _show_previous_inputs(inputs: dict[str, Any]) -> None:
    """Show the init image and mask of the applied parameters, which are used where nothing is uploaded."""
    previous = _previous_inputs()
    paths = [path for name in ("img", "mask") if name in inputs and not inputs[name] for path in previous[name]]
    if paths:
        st.image(paths, caption=["from the parameters"] * len(paths), width=96)


def _previous_inputs() -> dict[str, list[str]]:
    """Return the init images and the mask of the parameters applied last, as far as their files still exist."""
    previous = st.session_state.get("previous inputs", {"img": [], "mask": None})
    paths = {"img": previous["img"], "mask": [previous["mask"]] if previous["mask"] else []}
    return {name: [path for path in each if Path(path).is_file()] for name, each in paths.items()}


def _generate(selection: ModelSelection, dirs: AppDirs, values: dict[str, Any]) -> None:
    """Store the uploads and submit the task; an error is shown on the page."""
    sampling = {
        **values,
        "prompt": st.session_state.prompt,
        "negative_prompt": st.session_state.negative_prompt,
        "save_path": str(dirs.session_images),
        "preview_interval": values["preview_interval"] or max(values["sample_step"] // _DEFAULT_PREVIEWS, 1),
    }
    try:
        if "img" in values:
            sampling["img"] = _store(values["img"], dirs) or _previous_inputs()["img"]
        if "mask" in values:
            masks = _store([values["mask"]] if values["mask"] else [], dirs) or _previous_inputs()["mask"]
            sampling["mask"] = masks[0] if masks else None
        st.session_state[TASK_KEY] = generate_jobs.generate(selection.sampling_config(**sampling))
        st.rerun()
    except UserError as error:
        st.session_state[TASK_KEY] = None
        st.error(str(error))


def _store(files: list[Any], dirs: AppDirs) -> list[str]:
    """Store uploaded images; return their paths."""
    if not files:
        return []
    contents = [file.getvalue() for file in files]
    return [str(path) for path in uploads.store_images(contents, dirs.session_images / "init_images", st.toast)]
