"""The page that learns a word from images, and shows how the runs are doing."""

from __future__ import annotations

import dataclasses
import secrets
import time
from typing import Any

import streamlit as st

from demo.app import model
from demo.app.model import Choice
from demo.app.options import kept
from demo.app.places import Places
from demo.app.server import training_jobs, uploads
from demo.app.server.training_jobs import Run
from gm.errors import UserError

_SIGNS = {
    "running": ":material/play_circle:",
    "finished": ":material/check_circle:",
    "stopped": ":material/pause_circle:",
    "failed": ":material/error:",
}


def page(choice: Choice, places: Places) -> None:
    """Show the page."""
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("A new word", divider="gray")
        _form(choice, places)
    with right:
        st.subheader("Runs", divider="gray")
        found = training_jobs.all_runs(places.trained)
        if not found:
            st.caption("Runs go on when this page is closed, and are here when you come back.")
            return
        names = [run.name for run in found]
        name = st.selectbox("run", names, key="run", label_visibility="collapsed")
        run = next(run for run in found if run.name == name)
        moving = run.state == "running"
        st.fragment(_run, run_every=2 if moving else None)(run, moving)


def _form(choice: Choice, places: Places) -> None:
    training, concept, version = choice.config.training, choice.config.concept, choice.config.model.version
    sent = st.file_uploader("3 to 20 images", accept_multiple_files=True, key="images")
    word = st.text_input("word", key=kept("new word", "<my-thing>"), help="how to call it in prompts; no word already")
    columns = st.columns(2)
    kind = columns[0].selectbox("what the images share", ("object", "style", "face"), key=kept("kind", "object"))
    like = columns[1].text_input(
        "starts from the word", key=kept("like", ""), help="one it knows, such as toy; empty is random"
    )
    vectors = columns[0].number_input("vectors", 1, 75, key=kept(f"vectors of {version}", concept.num_vectors))
    steps = columns[1].number_input("steps", 1, 100000, key=kept(f"steps of {version}", training.total_step))
    rate = columns[0].number_input(
        "learning rate", 0.0, 10.0, format="%g", key=kept(f"learning rate of {version}", training.learning_rate)
    )
    shown = columns[1].number_input(
        "steps between previews", 1, 100000, key=kept(f"shown of {steps}", max(int(steps) // 4, 1))
    )
    if st.button("Learn", type="primary", icon=":material/school:", width="stretch"):
        options: dict[str, Any] = {
            "placeholder_token": word.strip(),
            "learnable_property": kind,
            "num_vectors": int(vectors),
            "total_step": int(steps),
            "learning_rate": rate,
            "infer_during_train": True,
            "infer_interval": int(shown),
            **dataclasses.asdict(choice.config.run),
        }
        options |= {"initializer_token": like.strip()} if like.strip() else {}
        try:
            folder = places.trained / "images" / secrets.token_hex(8)
            uploads.images([each.getvalue() for each in sent or []], folder)
            run = training_jobs.start(choice.config_path, places.trained, {**options, "data_path": str(folder)})
        except UserError as error:
            st.error(str(error))
            return
        st.session_state.pop("run", None)
        st.toast(f"{run.name} has begun")
        st.rerun()


def _run(run: Run, moving: bool) -> None:
    """Show a run, which was `moving` when the page was shown."""
    state, records = run.state, run.records()
    if (state == "running") != moving:
        st.rerun()
    total = int(run.order["options"]["total_step"])
    done = records[-1]["step"] if records else 0
    begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started))
    st.progress(min(done / total, 1.0), f"{_SIGNS[state]} {state} · step {done} of {total} · begun {begun}")
    with st.container(horizontal=True):
        try:
            asked = run.order["asked"]
            if state == "running" and st.button(
                "Stopping" if asked else "Stop", disabled=asked, help="it saves everything first", key="stop"
            ):
                run.stop()
            if run.resumable and st.button("Go on", key="go on"):
                run.resume()
                st.rerun()
        except UserError as error:
            st.error(str(error))
        for path in run.learned()[:1]:
            st.download_button(f"{path.name}", path.read_bytes(), path.name, key="learned")
            if st.button("Use it", key="use"):
                model.use(path)
        if report := run.report():
            st.download_button("Report", report.read_bytes(), f"{run.name}.html", "text/html", key="report")
    if len(records) > 1:
        curve = {name: [record[name] for record in records] for name in ("step", "loss_smoothed")}
        st.line_chart(curve, x="step", y="loss_smoothed", y_label="loss", height=200)
    for path in run.previews()[-1:]:
        st.image(str(path), caption=f"at {path.stem.replace('_', ' ')}", width="stretch")
    if state == "failed" or not records:
        st.code(run.tail(), language=None)
