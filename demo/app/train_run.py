"""A training run on the page Train: its progress, losses, sample images and results."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import browser, header, plain, sidebar, train_options
from demo.app.options import widget_key
from demo.app.server import thumbnails, training_jobs, training_progress
from demo.app.server.training_jobs import TrainingJob
from demo.app.server.training_record import Launch
from gm.data import templates
from gm.embeddings.embedding import safe_filename
from gm.errors import UserError

ACTIVE = ("queued", "running")
_ICONS = {
    "queued": ":material/schedule:",
    "running": ":material/play_circle:",
    "finished": ":material/check_circle:",
    "stopped": ":material/pause_circle:",
    "failed": ":material/error:",
}
_MAX_SAMPLES = 24  # of a strip
_SAMPLE = 168  # pixels; two beside each other on a phone
_LEAVE_KEY = "leave the page"  # in the session state


def show(job: TrainingJob, previous_state: str) -> None:
    """Show a job, which was in `previous_state` when the page was shown."""
    if st.session_state.pop(_LEAVE_KEY, False):  # a button here runs this fragment alone
        st.rerun(scope="app")
    try:
        launch, state = job.launch, job.state
    except UserError as error:  # damaged since then
        plain.error(error)
        return
    records = job.records()
    if state != previous_state:
        st.rerun()
    _progress(job, launch, state, records)
    if state == "failed":
        plain.error(train_options.name_boxes(training_progress.failure(job, launch, records)))
    with st.container(horizontal=True):
        _try_it(job, launch)
        _controls(job, launch, state)
    _results(job, launch)
    if len(records) > 1:
        _losses(job, records)
    _samples(job)
    if state == "failed" or not records:
        with st.expander("Console", expanded=state in ACTIVE):
            st.code(job.console_tail(), language=None, wrap_lines=True)


def _progress(job: TrainingJob, launch: Launch, state: str, records: list[dict[str, Any]]) -> None:
    total = launch.total_step
    step = records[-1]["step"] if records else 0
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(launch.started))
    left = training_progress.seconds_left(job, launch, records) if state == "running" else None
    remaining = f"about {training_progress.duration(left)} left · " if left is not None else ""
    share = min(max(step / total, 0.0), 1.0)
    st.progress(share, f"{_ICONS[state]} {state} · step {step:g} of {total} · {remaining}started {started}")


def _try_it(job: TrainingJob, launch: Launch) -> None:
    best = job.best_embedding_file()
    if best:
        help_ = "opens Generate with this embedding and a prompt"
        st.button(
            "Try it", type="primary", icon=":material/brush:", key="try it", help=help_, on_click=_fill_in_generate,
            args=(best, launch),
        )  # fmt: skip


def _fill_in_generate(path: Path, launch: Launch) -> None:
    """Select an embedding and the model that it was trained with, write a prompt, and open the page Generate."""
    _select(path, launch)
    earlier = str(st.session_state.get("prompt") or "")
    token = launch.placeholder_token
    if token and token not in earlier:
        kinds = templates.TEMPLATES
        template = kinds.get(str(launch.options.get("learnable_property")), kinds["object"])[0]
        st.session_state["prompt"] = templates.fill(template, token, _class_word(launch))
        if earlier.strip():  # nothing that was typed is lost
            st.toast(f"Your prompt was: {plain.escape(earlier)}", duration="infinite")
    st.session_state["task"] = "txt2img"
    _open("generate")


def _open(page: str) -> None:
    st.session_state[header.OPEN_KEY] = page
    st.session_state[_LEAVE_KEY] = True


def _select(path: Path, launch: Launch) -> None:
    st.session_state["new embeddings"] = [path]
    weight = launch.options.get("weight")
    if launch.version:
        st.session_state["version"] = launch.version
        if isinstance(weight, str) and weight:
            st.session_state[f"weight of {launch.version}"] = weight


def _class_word(launch: Launch) -> str | None:
    word = launch.options.get("class_word")
    return word if isinstance(word, str) else None


def _compare_steps(job: TrainingJob, launch: Launch) -> None:
    st.session_state[widget_key("comparison")] = "Steps of a run"
    st.session_state[widget_key("compared run")] = job.name
    path = job.best_embedding_file()
    if path:
        _select(path, launch)
    _open("compare")


def _controls(job: TrainingJob, launch: Launch, state: str) -> None:
    """Show the buttons that stop, resume and share a job."""
    try:
        if state in ACTIVE:
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


def _results(job: TrainingJob, launch: Launch) -> None:
    """Show the downloads of the embedding and the report, and what else can be done with the embedding."""
    best, files = job.best_embedding_file(), job.embedding_files()
    with st.container(horizontal=True):
        if best:
            _downloads(best, launch, "")
        if report := job.report():
            st.download_button("Report", report.read_bytes(), f"{job.name}.html", "text/html", key="report")
        if best and st.button("Use this embedding", key="use embedding", help="selects it, and stays on this page"):
            sidebar.select_embeddings([best])
        if len(files) > 1:
            st.button("Compare steps", key="compare steps", on_click=_compare_steps, args=(job, launch))
            with st.popover("Other steps"):
                for path in sorted(files, key=_order):
                    if path != best:
                        with st.container(horizontal=True, vertical_alignment="center"):
                            st.text(f"Step {training_jobs.file_step(path)}")
                            _downloads(path, launch, f"-{training_jobs.file_step(path)}")


def _order(path: Path) -> int:
    step = training_jobs.file_step(path)
    return int(step) if step.isdigit() else -1


def _downloads(path: Path, launch: Launch, ending: str) -> None:
    """Show the downloads of an embedding, named so that AUTOMATIC1111 and ComfyUI find its placeholder token."""
    stem = (safe_filename(launch.placeholder_token) or "embedding") + ending
    for suffix in (".safetensors", ".ckpt"):
        file = path.with_suffix(suffix)
        with contextlib.suppress(OSError):
            content = file.read_bytes()
            help_ = f"{stem}{suffix}, for MindSpore" if suffix == ".ckpt" else f"{stem}{suffix}, for other programs too"
            st.download_button(
                suffix, content, f"{stem}{suffix}", key=f"download {file.name}", icon=":material/download:",
                help=plain.escape(help_),
            )  # fmt: skip


def _losses(job: TrainingJob, records: list[dict[str, Any]]) -> None:
    curves = training_progress.losses(job, records)
    points = [(step, loss, name) for name, curve in curves.items() for step, loss in curve]
    columns = dict(zip(("step", "loss", "Loss"), map(list, zip(*points, strict=True)), strict=True))
    st.line_chart(columns, x="step", y="loss", color="Loss", x_label="step", y_label="loss (smoothed)", height=220)
    validation = curves.get("validation")
    if validation:
        step, loss = min(validation, key=lambda point: point[1])
        st.caption(f"Validation loss {validation[-1][1]:.4f}; lowest {loss:.4f} at step {step:g}.")


def _samples(job: TrainingJob) -> None:
    """Show the sample images over the steps, and the newest larger."""
    paths = job.previews()
    if not paths:
        return
    samples = training_progress.thin_out(paths, _MAX_SAMPLES)
    if len(paths) > 1:
        st.markdown("**Sample images over the steps**")
        with st.container(horizontal=True, gap="small"):
            for path in samples:
                if content := thumbnails.of_image(path, 2 * _SAMPLE):
                    st.image(content, caption=path.stem.replace("_", " "), width=_SAMPLE)
        if len(samples) < len(paths):
            st.caption(f"{len(samples)} of {len(paths)}")
    st.image(str(paths[-1]), caption=f"Preview at {paths[-1].stem.replace('_', ' ')}", width="stretch")
