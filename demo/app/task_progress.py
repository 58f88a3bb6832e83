"""Progress of a task on its page: queue position, sampler steps, previews and a button that cancels it."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from demo.app import plain
from demo.app.server.worker import END_STATES, Task
from gm.sampling import image_files
from gm.sampling.pipeline import SamplingProgress

_PREVIEW_COLUMNS = 4
_PREVIEW_WIDTH = 160


def is_busy(key: str) -> bool:
    """Return whether the task in the session state under `key` is queued or running."""
    task: Task | None = st.session_state.get(key)
    return task is not None and task.state not in END_STATES


def show(key: str) -> None:
    """Show the task in the session state under `key`, if any, until it has ended, and then its error, if any."""
    task: Task | None = st.session_state.get(key)
    if task is None:
        return
    if task.state not in END_STATES:
        _progress(key)
    elif task.state == "failed":
        plain.error(task.error)
    elif task.state == "cancelled":
        st.info("Cancelled. Images finished before are below.")


def image_paths(key: str) -> list[Path]:
    """Return the images that the task under `key` has written, without grids."""
    task: Task | None = st.session_state.get(key)
    paths = [event for event in list(task.events) if isinstance(event, Path)] if task else []
    return [path for path in paths if path.name.startswith("image") and path.exists()]


@st.fragment(run_every=0.5)
def _progress(key: str) -> None:
    task: Task = st.session_state[key]
    if task.state in END_STATES:
        st.rerun()
    steps = [event for event in list(task.events) if isinstance(event, SamplingProgress)]
    left, right = st.columns([5, 1], vertical_alignment="center")
    with left:
        if task.position:
            st.progress(0.0, f"Queued, {task.position} ahead of you")
        elif not steps:
            st.progress(0.0, "Loading and compiling; the first image takes longer")
        else:
            st.progress(steps[-1].done / steps[-1].total, f"Step {steps[-1].done} of {steps[-1].total}")
    if right.button("Cancel", key=f"cancel {key}", width="stretch"):
        task.cancel()
    previews = next((event.previews for event in reversed(steps) if event.previews), ())
    if previews:
        columns = min(len(previews), _PREVIEW_COLUMNS)
        st.image(image_files.make_grid(previews, columns), caption="Preview", width=_PREVIEW_WIDTH * columns)
