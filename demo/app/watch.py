"""A task while it is done: its place in the line, its progress, what it looks like so far."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from demo.app.server.worker import ENDED, Task
from gm.sampling import image_files
from gm.sampling.pipeline import SamplingProgress


def busy(name: str) -> bool:
    """Return whether the task that the session keeps under `name` has not ended."""
    task: Task | None = st.session_state.get(name)
    return task is not None and task.state not in ENDED


def show(name: str) -> None:
    """Show the task that the session keeps under `name`, if any, until it has ended."""
    task: Task | None = st.session_state.get(name)
    if task is None:
        return
    if task.state not in ENDED:
        _moving(name)
    elif task.state == "failed":
        st.error(task.error)
    elif task.state == "cancelled":
        st.info("Cancelled. What was finished before is below.")


@st.fragment(run_every=0.5)
def _moving(name: str) -> None:
    task: Task = st.session_state[name]
    if task.state in ENDED:
        st.rerun()
    drawn = [event for event in list(task.events) if isinstance(event, SamplingProgress)]
    left, right = st.columns([5, 1], vertical_alignment="center")
    with left:
        if task.place:
            st.progress(0.0, f"waiting: {task.place} before you")
        elif not drawn:
            st.progress(0.0, "loading and compiling: the first image takes longer")
        else:
            st.progress(drawn[-1].done / drawn[-1].total, f"step {drawn[-1].done} of {drawn[-1].total}")
    if right.button("Cancel", key=f"cancel {name}", width="stretch"):
        task.cancel()
    previews = next((event.previews for event in reversed(drawn) if event.previews), ())
    if previews:
        st.image(
            image_files.make_grid(previews, min(len(previews), 4)), caption="so far", width=160 * min(len(previews), 4)
        )


def written(name: str) -> list[Path]:
    """Return the images that the task of this name has written, without grids."""
    task: Task | None = st.session_state.get(name)
    paths = [event for event in list(task.events) if isinstance(event, Path)] if task else []
    return [path for path in paths if path.name.startswith("image") and path.exists()]
