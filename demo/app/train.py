"""Page Train: start training runs and follow their progress."""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import browser, plain, sidebar
from demo.app.app_dirs import AppDirs
from demo.app.options import between, persistent_key
from demo.app.server import training_jobs, uploads
from demo.app.server.training_jobs import TrainingJob
from demo.app.server.training_record import Launch
from demo.app.sidebar import ModelSelection
from gm.errors import UserError

_ICONS = {
    "queued": ":material/schedule:",
    "running": ":material/play_circle:",
    "finished": ":material/check_circle:",
    "stopped": ":material/pause_circle:",
    "failed": ":material/error:",
}
_ACTIVE = ("queued", "running")
_NOT_TRAINED_WITH = ("lora_weight", "revision", "variant", "cache_weights")  # options that this page does not have
_PROPERTIES = ("object", "style", "face")
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
    data_path = _training_images(dirs)
    options = _concept_options(selection)
    if st.button("Train", type="primary", icon=":material/model_training:", width="stretch"):
        try:
            data_path = data_path or _store_images([], dirs)
            run = dataclasses.asdict(selection.config.run)
            options |= {name: value for name, value in run.items() if name not in _NOT_TRAINED_WITH}
            options["data_path"] = str(data_path)
            owner = browser.identify()
            job = training_jobs.start(selection.config_path, dirs.training_runs, options, owner)
        except UserError as error:
            plain.error(error)
            return
        st.session_state["training run"] = job.name
        plain.toast(f"{job.name} has started")
        st.rerun()


def _training_images(dirs: AppDirs) -> Path | None:
    """Show the upload of training images; return the folder where they are stored, None if there are none yet."""
    files = st.file_uploader(
        "Training images",
        accept_multiple_files=True,
        key="images",
        help="3 to 20 images; a mask of cat.jpg is named cat.mask.png, white is trained on",
    )
    ids = [file.file_id for file in files or []]
    if ids and st.session_state.get("training image ids") != ids:
        try:
            folder = _store_images([(file.name, file.getvalue()) for file in files or []], dirs)
        except UserError as error:
            plain.error(error)
            return None
        st.session_state["training image ids"] = ids
        st.session_state["training images"] = str(folder)
    kept = st.session_state.get("training images")
    if not isinstance(kept, str) or not os.path.isdir(kept):
        return None
    if not files:  # Streamlit empties the upload when the page is left
        left, right = st.columns([3, 1], vertical_alignment="center")
        left.caption(f"{len(os.listdir(kept))} files that you uploaded before are used.")
        right.button("Remove", key="remove images", on_click=st.session_state.pop, args=("training images",))
    return Path(kept)


def _store_images(files: list[tuple[str, bytes]], dirs: AppDirs) -> Path:
    """Store training images and masks, names and contents, in a new folder and return it; UserError for a bad one."""
    folder = dirs.training_runs / "images" / secrets.token_hex(8)
    try:
        uploads.store_training_images(files, folder, plain.toast)
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


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
        _PROPERTIES,
        key=persistent_key("learnable property", "object", _PROPERTIES.__contains__),
        help="what the images share",
    )
    initializer = right.text_input(
        "Initializer token",
        key=persistent_key("initializer token", ""),
        help="a word the model knows, such as toy; empty starts from random vectors",
    )
    vectors_key = persistent_key(f"num vectors of {version}", concept.num_vectors, between(1, 75))
    num_vectors = left.number_input("Num vectors", 1, 75, key=vectors_key, help="embedding vectors per text encoder")
    steps_key = persistent_key(f"steps of {version}", training.total_step, between(1, 100000))
    steps = right.number_input("Steps", 1, 100000, key=steps_key)
    rate_key = persistent_key(f"learning rate of {version}", training.learning_rate, between(0.0, 10.0, float))
    learning_rate = left.number_input("Learning rate", 0.0, 10.0, format="%g", key=rate_key)
    interval_key = persistent_key(f"preview interval of {steps}", max(int(steps) // 4, 1), between(1, 100000))
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
    st.fragment(_job, run_every=_REFRESH_SECONDS if state in _ACTIVE else None)(jobs[name], state)


def _job(job: TrainingJob, previous_state: str) -> None:
    """Show a job, which was in `previous_state` when the page was shown."""
    try:
        launch, state = job.launch, job.state
    except UserError as error:  # damaged since then
        plain.error(error)
        return
    records = job.records()
    if state != previous_state:
        st.rerun()
    total = launch.total_step
    step = records[-1]["step"] if records else 0
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(launch.started))
    share = min(max(step / total, 0.0), 1.0)
    st.progress(share, f"{_ICONS[state]} {state} · step {step:g} of {total} · started {started}")
    with st.container(horizontal=True):
        _controls(job, launch, state)
        _results(job)
    if len(records) > 1:
        curve = {name: [record[name] for record in records] for name in ("step", "loss_smoothed")}
        st.line_chart(curve, x="step", y="loss_smoothed", x_label="step", y_label="loss", height=200)
    for path in job.previews()[-1:]:
        st.image(str(path), caption=f"Preview at {path.stem.replace('_', ' ')}", width="stretch")
    if state == "failed" or not records:
        st.code(job.console_tail(), language=None)


def _controls(job: TrainingJob, launch: Launch, state: str) -> None:
    """Show the buttons that stop, resume and share a job."""
    try:
        if state in _ACTIVE:
            requested = launch.stop_requested
            label = "Stopping" if requested else "Stop"
            if st.button(label, disabled=requested, help="saves the training state first", key="stop"):
                job.stop()
        if job.is_resumable and st.button("Resume", key="resume"):
            job.resume()
            st.rerun()
        if launch.owner == browser.identify():
            help_ = "every browser that opens the app sees the run and its embeddings, and may stop it"
            shared = st.checkbox("Shared", launch.shared, help=help_, key=f"share {job.name}")
            if shared != launch.shared:
                job.share(shared)
    except UserError as error:
        plain.error(error)


def _results(job: TrainingJob) -> None:
    """Show the buttons for the newest embedding file and the report."""
    for path in job.embedding_files()[:1]:
        st.download_button(plain.escape(path.name), path.read_bytes(), path.name, key="download embedding")
        if st.button("Use this embedding", key="use embedding"):
            sidebar.select_embeddings([path])
    if report := job.report():
        st.download_button("Report", report.read_bytes(), f"{job.name}.html", "text/html", key="report")
