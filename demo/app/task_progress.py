"""Progress of a task on its page: queue position, images and time left, previews, and buttons that skip and cancel."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from demo.app import messages, plain
from demo.app.app_dirs import AppDirs
from demo.app.server import generate_jobs, thumbnails
from demo.app.server.generate_jobs import TaskProgress
from demo.app.server.worker import END_STATES, Task
from gm.sampling import image_files

_PREVIEW_COLUMNS = 4
_PREVIEW_WIDTH = 160
_MAX_IMAGES = 12  # of a task, shown beside the progress; all are in the gallery
_SIDE = 512  # of these


def is_busy(key: str) -> bool:
    """Return whether the task in the session state under `key` is queued or running."""
    task: Task | None = st.session_state.get(key)
    return task is not None and task.state not in END_STATES


def show(key: str, is_shown: bool = True, dirs: AppDirs | None = None) -> None:
    """Show the task in the session state under `key`, if any, until it has ended, and then its error, if any.

    An error is left out where `is_shown` is false, since its cause may be gone. With `dirs`, the images are shown, too,
    each when it is finished.
    """
    task: Task | None = st.session_state.get(key)
    if task is None:
        return
    if task.state not in END_STATES:
        _progress(key, dirs is not None)
    elif task.state == "failed" and is_shown:
        plain.error(task.error) if dirs is None else messages.error(task.error, dirs)
    elif task.state == "cancelled":
        st.info("Cancelled. Images finished before are below.")
    if dirs is not None and task.state in END_STATES:
        _images(key)


def image_paths(key: str) -> list[Path]:
    """Return the images that the task under `key` has written, without grids."""
    task: Task | None = st.session_state.get(key)
    paths = [event for event in list(task.events) if isinstance(event, Path)] if task else []
    return [path for path in paths if path.name.startswith("image") and path.exists()]


def describe(steps: list[TaskProgress]) -> str:
    """Return the progress in words: the image and the time left."""
    last = steps[-1]
    text = f"Image {min(last.image, last.num_images)} of {last.num_images}" if last.num_images > 1 else ""
    seconds = generate_jobs.seconds_left(steps)
    left = "" if seconds is None else f"about {duration(seconds)} left"
    return ", ".join(part for part in (text, left) if part) or f"Step {last.done} of {last.total}"


def duration(seconds: float) -> str:
    """Return a time in words, as exact as an estimate is."""
    if seconds < 100:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


@st.fragment(run_every=0.5)
def _progress(key: str, with_images: bool) -> None:
    task: Task = st.session_state[key]
    if task.state in END_STATES:
        st.rerun()
    steps = [event for event in list(task.events) if isinstance(event, TaskProgress)]
    if task.position:
        st.progress(0.0, f"Queued, {task.position} ahead of you")
    elif not steps:
        st.progress(0.0, "Loading and compiling; the first image takes longer")
    else:
        last = steps[-1]
        st.progress(last.done / last.total, f"{describe(steps)} · Step {last.done} of {last.total}")
    _buttons(key, task, steps)
    previews = next((event.previews for event in reversed(steps) if event.previews), ())
    if previews:
        columns = min(len(previews), _PREVIEW_COLUMNS)
        st.image(image_files.make_grid(previews, columns), caption="Preview", width=_PREVIEW_WIDTH * columns)
    if with_images:
        _images(key)


def _buttons(key: str, task: Task, steps: list[TaskProgress]) -> None:
    with st.container(horizontal=True):
        if steps and steps[-1].num_images > 1 and st.button("Skip", key=f"skip {key}", help="Go on with the next"):
            task.skip()
        if st.button("Cancel", key=f"cancel {key}", help="Images finished before stay"):
            task.cancel()


def _images(key: str) -> None:
    """Show the task's finished images, the newest first."""
    paths = image_paths(key)[: -_MAX_IMAGES - 1 : -1]
    contents = [content for content in (thumbnails.of_image(path, _SIDE) for path in paths) if content]
    for column, content in zip(st.columns(1 if len(contents) == 1 else 2) * len(contents), contents, strict=False):
        column.image(content, width="stretch")
