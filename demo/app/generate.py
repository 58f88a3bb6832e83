"""Page Generate: images from a prompt, and from an init image and a mask."""

from __future__ import annotations

from typing import Any

import streamlit as st

from demo.app import browser, gallery, init_inputs, main_options, messages, options, plain, reuse, task_progress
from demo.app.app_dirs import AppDirs
from demo.app.server import generate_jobs
from demo.app.sidebar import ModelSelection
from gm.config import family_options
from gm.errors import UserError

TASK_KEY = "generate task"  # of the session's task, in the session state
_ERROR_KEY = "generate error"  # of why the last request was refused, and that request
_REQUEST_KEY = "generate request"  # of the options of the task
_TASK_LABELS = {"txt2img": "txt2img", "img2img": "img2img", "inpaint": "Inpaint"}
_DEFAULT_PREVIEWS = 8  # an image, where no preview interval is set


def page(selection: ModelSelection, dirs: AppDirs) -> None:
    """Show the page."""
    with st.container():  # also if it is empty, so that the elements below keep their places
        reuse.show_note()
    left, right = st.columns([3, 1])
    with left:
        _token_buttons(selection.placeholder_tokens)
        st.text_area("Prompt", key="prompt", height=80, placeholder=_example_prompt(selection.placeholder_tokens))
        st.text_input("Negative prompt", key="negative_prompt", placeholder="What the image should not show")
    with right:
        busy = task_progress.is_busy(TASK_KEY)
        wanted = st.button("Generate", type="primary", icon=":material/brush:", width="stretch", disabled=busy)
        reuse.drop_zone(dirs)
    left, right = st.columns(2, gap="medium")
    with left:
        values = _options(selection, dirs)
    request = {**values, "prompt": st.session_state.prompt, "negative_prompt": st.session_state.negative_prompt}
    with right:
        if wanted:
            _generate(selection, dirs, request)
        _show_error(selection, request, dirs)
        task_progress.show(TASK_KEY, is_shown=_is_of_task(selection, request), dirs=dirs)
    gallery.show(dirs.images(browser.identify()), dirs)


def _options(selection: ModelSelection, dirs: AppDirs) -> dict[str, Any]:
    """Show the task's inputs and the options; return them all."""
    sampling, model = selection.config.sampling, selection.config.model
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
    inputs = init_inputs.show(task, sampling.strength, dirs)
    values = main_options.show(sampling, model, task)
    values |= options.more_options(sampling, family_options.inapplicable(model))
    return {**values, **inputs, "task": task}


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


def _generate(selection: ModelSelection, dirs: AppDirs, request: dict[str, Any]) -> None:
    """Submit the task; an error is remembered, with the request that it is of."""
    interval = request["preview_interval"] or max(request["sample_step"] // _DEFAULT_PREVIEWS, 1)
    sampling = main_options.to_sampling(request)
    sampling |= {"save_path": str(dirs.images(browser.identify())), "preview_interval": interval}
    whole = _whole(selection, request)
    try:
        config = selection.sampling_config(**sampling)
        browser.set_task(dirs, TASK_KEY, generate_jobs.generate(config, browser.state(dirs).owner))
    except UserError as error:
        browser.set_task(dirs, TASK_KEY, None)
        st.session_state[_ERROR_KEY] = (whole, str(error))
        return
    st.session_state.pop(_ERROR_KEY, None)
    st.session_state[_REQUEST_KEY] = whole
    st.session_state[main_options.LAST_SEED_KEY] = sampling["seed"]
    st.rerun()


def _show_error(selection: ModelSelection, request: dict[str, Any], dirs: AppDirs) -> None:
    """Show why the last request was refused, until something of it is changed."""
    whole, error = st.session_state.get(_ERROR_KEY, (None, ""))
    if whole == _whole(selection, request):
        messages.error(error, dirs)
    else:
        st.session_state.pop(_ERROR_KEY, None)


def _is_of_task(selection: ModelSelection, request: dict[str, Any]) -> bool:
    """Return whether the page still has what the task was asked for, or what it had first after a reload."""
    whole = _whole(selection, request)
    return bool(st.session_state.setdefault(_REQUEST_KEY, whole) == whole)


def _whole(selection: ModelSelection, request: dict[str, Any]) -> dict[str, Any]:
    return {**request, "run": selection.config.run, "embeddings": [str(path) for path in selection.embeddings]}
