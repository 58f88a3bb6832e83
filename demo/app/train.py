"""Page Train: start training runs and follow their progress."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import browser, plain, train_images, train_options, train_run
from demo.app.app_dirs import AppDirs
from demo.app.server import training_images, training_jobs
from demo.app.sidebar import ModelSelection
from gm.errors import UserError

_REFRESH_SECONDS = 2  # of a running job


def page(selection: ModelSelection, dirs: AppDirs) -> None:
    """Show the page."""
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("New embedding", divider="gray")
        _form(selection, dirs)
    with right:
        st.subheader("Training runs", divider="gray")
        _runs(dirs)


def _form(selection: ModelSelection, dirs: AppDirs) -> None:
    images = train_images.upload(dirs)
    cards = st.container()
    options = train_options.concept(selection)
    options |= train_options.advanced(selection)
    with cards:
        train_images.gallery(images, selection, options)
    _show_amount(options, selection, len(images))
    if st.button("Train", type="primary", icon=":material/model_training:", width="stretch"):
        try:
            job = _start(options, selection, dirs)
        except UserError as error:
            plain.error(train_options.name_boxes(str(error)))
            return
        st.session_state["training run"] = job.name
        plain.toast(f"{job.name} has started")
        st.rerun()


def _start(options: dict[str, Any], selection: ModelSelection, dirs: AppDirs) -> training_jobs.TrainingJob:
    """Start a run on a copy of the images; UserError if it cannot begin."""
    train_options.check(selection.config, options)
    options = {**options, **dataclasses.asdict(selection.config.run), "data_path": str(_copy_images())}
    version = str(st.session_state.get("version", ""))
    return training_jobs.start(selection.config_path, dirs.training_runs, options, browser.identify(), version)


def _copy_images() -> Path:
    """Return a folder with the images of a run; UserError if there are none."""
    folder = train_images.folder()
    if not folder or not training_images.load(folder):
        raise UserError("no image was uploaded; choose at least one above")
    return training_images.copy(folder)


def _show_amount(options: dict[str, Any], selection: ModelSelection, images: int) -> None:
    """Show how often the run sees each image."""
    batch = options.get("train_batch_size", selection.config.training.train_batch_size)
    updates = -(-options["total_step"] // _accumulation(options, selection))
    if images:
        times = options["total_step"] * batch / images
        plain.caption(f"Each image is used about {times:,.0f} times; {updates:,} updates of the embedding.")


def _accumulation(options: dict[str, Any], selection: ModelSelection) -> int:
    default = selection.config.training.gradient_accumulation_steps
    return int(options.get("gradient_accumulation_steps", default))


def _runs(dirs: AppDirs) -> None:
    jobs = {job.name: job for job in training_jobs.all_jobs(dirs.training_runs, browser.identify())}
    if not jobs:
        st.caption("Training runs continue when this page is closed and are listed here.")
        return
    if st.session_state.get("training run") not in jobs:
        st.session_state.pop("training run", None)
    name = st.selectbox("Training run", list(jobs), key="training run", label_visibility="collapsed")
    try:
        state = jobs[name].state
    except UserError as error:
        plain.error(error)
        return
    run_every = _REFRESH_SECONDS if state in train_run.ACTIVE else None
    st.fragment(train_run.show, run_every=run_every)(jobs[name], state)
