"""Page Train: start training runs and follow their progress."""

from __future__ import annotations

import dataclasses
import secrets
import time
from typing import Any

import streamlit as st

from demo.app import sidebar
from demo.app.app_dirs import AppDirs
from demo.app.options import persistent_key
from demo.app.server import training_jobs, uploads
from demo.app.server.training_jobs import TrainingJob
from demo.app.sidebar import ModelSelection
from gm.errors import UserError

_ICONS = {
    "running": ":material/play_circle:",
    "finished": ":material/check_circle:",
    "stopped": ":material/pause_circle:",
    "failed": ":material/error:",
}
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
    files = st.file_uploader(
        "Training images",
        accept_multiple_files=True,
        key="images",
        help="3 to 20 images; a mask of cat.jpg is named cat.mask.png, white is trained on",
    )
    options = _concept_options(selection)
    if st.button("Train", type="primary", icon=":material/model_training:", width="stretch"):
        try:
            data_path = dirs.training_runs / "images" / secrets.token_hex(8)
            uploads.store_training_images([(file.name, file.getvalue()) for file in files or []], data_path, st.toast)
            options |= {**dataclasses.asdict(selection.config.run), "data_path": str(data_path)}
            job = training_jobs.start(selection.config_path, dirs.training_runs, options)
        except UserError as error:
            st.error(str(error))
            return
        st.session_state.pop("training run", None)
        st.toast(f"{job.name} has started")
        st.rerun()


def _concept_options(selection: ModelSelection) -> dict[str, Any]:
    """Show the widgets of the training options; return the options by name."""
    training, concept = selection.config.training, selection.config.concept
    version = selection.config.model.version
    token = st.text_input(
        "Placeholder token",
        key=persistent_key("placeholder token", "<my-thing>"),
        help="the concept's name in prompts; must not be a token of the model already",
    )
    left, right = st.columns(2)
    learnable_property = left.selectbox(
        "Learnable property",
        ("object", "style", "face"),
        key=persistent_key("learnable property", "object"),
        help="what the images share",
    )
    initializer = right.text_input(
        "Initializer token",
        key=persistent_key("initializer token", ""),
        help="a word the model knows, such as toy; empty starts from random vectors",
    )
    vectors_key = persistent_key(f"num vectors of {version}", concept.num_vectors)
    num_vectors = left.number_input("Num vectors", 1, 75, key=vectors_key, help="embedding vectors per text encoder")
    steps = right.number_input("Steps", 1, 100000, key=persistent_key(f"steps of {version}", training.total_step))
    rate_key = persistent_key(f"learning rate of {version}", training.learning_rate)
    learning_rate = left.number_input("Learning rate", 0.0, 10.0, format="%g", key=rate_key)
    interval_key = persistent_key(f"preview interval of {steps}", max(int(steps) // 4, 1))
    preview_interval = right.number_input(
        "Preview interval", 1, 100000, key=interval_key, help="steps between preview images"
    )
    options = {
        "placeholder_token": token.strip(),
        "learnable_property": learnable_property,
        "num_vectors": int(num_vectors),
        "total_step": int(steps),
        "learning_rate": learning_rate,
        "infer_during_train": True,
        "infer_interval": int(preview_interval),
    }
    return options | ({"initializer_token": initializer.strip()} if initializer.strip() else {})


def _runs(dirs: AppDirs) -> None:
    jobs = {job.name: job for job in training_jobs.all_jobs(dirs.training_runs)}
    if not jobs:
        st.caption("Training runs continue when this page is closed and are listed here.")
        return
    name = st.selectbox("Training run", list(jobs), key="training run", label_visibility="collapsed")
    running = jobs[name].state == "running"
    st.fragment(_job, run_every=_REFRESH_SECONDS if running else None)(jobs[name], running)


def _job(job: TrainingJob, was_running: bool) -> None:
    """Show a job; `was_running` tells whether it was running when the page was shown."""
    state = job.state
    records = job.records()
    if (state == "running") != was_running:
        st.rerun()
    total = int(job.launch.options["total_step"])
    step = records[-1]["step"] if records else 0
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.launch.started))
    st.progress(min(step / total, 1.0), f"{_ICONS[state]} {state} · step {step} of {total} · started {started}")
    with st.container(horizontal=True):
        _controls(job, state)
        _results(job)
    if len(records) > 1:
        curve = {name: [record[name] for record in records] for name in ("step", "loss_smoothed")}
        st.line_chart(curve, x="step", y="loss_smoothed", x_label="step", y_label="loss", height=200)
    for path in job.previews()[-1:]:
        st.image(str(path), caption=f"Preview at {path.stem.replace('_', ' ')}", width="stretch")
    if state == "failed" or not records:
        st.code(job.console_tail(), language=None)


def _controls(job: TrainingJob, state: str) -> None:
    """Show the buttons that stop and resume a job."""
    try:
        if state == "running":
            requested = job.launch.stop_requested
            label = "Stopping" if requested else "Stop"
            if st.button(label, disabled=requested, help="saves the training state first", key="stop"):
                job.stop()
        if job.is_resumable and st.button("Resume", key="resume"):
            job.resume()
            st.rerun()
    except UserError as error:
        st.error(str(error))


def _results(job: TrainingJob) -> None:
    """Show the buttons for the newest embedding file and the report."""
    for path in job.embedding_files()[:1]:
        st.download_button(path.name, path.read_bytes(), path.name, key="download embedding")
        if st.button("Use this embedding", key="use embedding"):
            sidebar.select_embeddings([path])
    if report := job.report():
        st.download_button("Report", report.read_bytes(), f"{job.name}.html", "text/html", key="report")
