"""Page Compare: the same seeds with and without an embedding, over the steps of a run, and over any two options."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import time
from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import browser, compare_results, init_inputs, plain, task_progress, xy_axes
from demo.app.app_dirs import AppDirs
from demo.app.options import between, persistent_key
from demo.app.server import generate_jobs, limits, training_jobs, weight_files
from demo.app.server.comparison import Comparison
from demo.app.server.training_jobs import TrainingJob
from demo.app.sidebar import ModelSelection
from demo.app.xy_axes import DENOISING, NO_AXIS, Axis, Source
from gm.config import Config
from gm.embeddings.embedding import Embedding
from gm.embeddings.training_options import concept_options
from gm.errors import UserError

TASK_KEY = "compare task"  # of the session's task, in the session state
BASELINE, STEPS, GRID = "Without embedding", "Steps of a run", "X/Y grid"
_DEFAULT_TOKEN = "thing"  # in the baseline prompt, where the embedding names no initializer token
_PREVIEW_INTERVAL = 4
_MAXIMA = {"sample_step": limits.MAXIMA["sample_step"], "guidance_scale": 1000, "seed": 2**53 - 1}
_MAX_TOKEN = 200  # characters of an initializer token in a file

Request = tuple[list[Config], list[str], list[str]]  # configs row by row, labels of the rows, labels of the columns


def page(selection: ModelSelection, dirs: AppDirs) -> None:
    """Show the page."""
    kinds = (BASELINE, STEPS, GRID)
    key = persistent_key("comparison", BASELINE, kinds.__contains__)
    kind = st.radio("Compare with", kinds, key=key, horizontal=True, label_visibility="collapsed")
    forms = {STEPS: _steps, GRID: _grid}
    folder = dirs.images(browser.identify()) / "compare" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    try:
        request = forms.get(kind, _baseline)(selection, dirs)
        if request and st.button(
            "Compare",
            type="primary",
            icon=":material/compare:",
            width="stretch",
            disabled=task_progress.is_busy(TASK_KEY),
        ):
            _start(request, Comparison(request[1], request[2], folder), dirs)
    except UserError as error:
        plain.error(error)
    task_progress.show(TASK_KEY)
    compare_results.show(dirs)


def _start(request: Request, comparison: Comparison, dirs: AppDirs) -> None:
    """Submit a comparison, each cell with a folder of its own; UserError if it cannot begin."""
    browser.set_task(dirs, TASK_KEY, None)
    configs = []
    for number, config in enumerate(request[0]):
        folder = comparison.cell_folder(*divmod(number, len(comparison.columns)))
        sampling = dataclasses.replace(config.sampling, save_path=str(folder))
        configs.append(dataclasses.replace(config, sampling=sampling))
    title = f"{configs[0].sampling.prompt} → {configs[-1].sampling.prompt}"
    browser.set_task(dirs, TASK_KEY, generate_jobs.compare(configs, title, browser.state(dirs).owner))
    st.session_state[compare_results.KEY] = comparison.as_dict()
    st.rerun()


def _baseline(selection: ModelSelection, dirs: AppDirs) -> Request | None:
    """Show the form of a prompt with an embedding beside one without; return what it asks for."""
    by_token = {e.placeholder_token: e for loaded in selection.embeddings.values() for e in loaded}
    if not by_token:
        st.info("Select an embedding in the sidebar, or train one on the page Train.")
        return None
    if st.session_state.get("compared embedding") not in by_token:
        st.session_state.pop("compared embedding", None)
    token = st.selectbox("Embedding", list(by_token), key="compared embedding")
    prompt = st.text_input("Prompt", key=persistent_key(f"prompt of {token}", f"a {token} on a blue background"))
    initializer = initializer_token(by_token[token])
    baseline = st.text_input(
        "Baseline prompt",
        key=persistent_key(f"baseline of {prompt}", prompt.replace(token, initializer)),
        help="the same prompt in words that the model knows without the embedding",
    )
    count = st.slider("Images", 1, 8, key=persistent_key("compared images", 4, between(1, 8)))
    configs = [
        selection.sampling_config(prompt=text, num_cols=count, num_rows=1, preview_interval=_PREVIEW_INTERVAL)
        for text in (baseline, prompt)
    ]
    return configs, [""], ["Baseline", "With embedding"]


def _steps(selection: ModelSelection, dirs: AppDirs) -> Request | None:
    """Show the form of the steps of a run side by side; return what it asks for."""
    job = _run(dirs)
    if job is None:
        st.info("Train an embedding on the page Train; the embedding files of its steps are compared here.")
        return None
    token = job.launch.placeholder_token
    key = persistent_key(f"prompt of {token}", f"a {token} on a blue background")
    source = Source(st.text_input("Prompt", key=key), token, run=job)
    x = xy_axes.values_of(xy_axes.STEP, "", source)
    return _request(x, NO_AXIS, source, selection, {})


def _grid(selection: ModelSelection, dirs: AppDirs) -> Request | None:
    """Show the form of a grid over one or two options; return what it asks for."""
    embeddings = {e.placeholder_token: (path, e) for path, each in selection.embeddings.items() for e in each}
    files = {token: path for token, (path, _) in embeddings.items()}
    token = next(iter(files), "")
    key = persistent_key("prompt of the grid", "a {} on a blue background" if token else "a red heart")
    help_ = "{} stands for the placeholder token" + (f", as {plain.escape(token)} does" if token else "")
    prompt = st.text_input("Prompt", key=key, help=help_)
    baseline = initializer_token(embeddings[token][1]) if token else _DEFAULT_TOKEN
    source = Source(prompt, token, baseline, files, checkpoints=_checkpoints(selection, dirs))
    state = st.session_state
    if xy_axes.STEP in (state.get("option X axis"), state.get("option Y axis")):
        job = _run(dirs)
        source = dataclasses.replace(source, token=job.launch.placeholder_token if job else token, run=job)
    x = _axis("X", "CFG scale", source)
    y = _axis("Y", xy_axes.STRENGTH if token else "Steps", source)
    inputs = _init_images(x, y, selection, dirs) if x and y else None
    return None if x is None or y is None or inputs is None else _request(x, y, source, selection, inputs)


def _checkpoints(selection: ModelSelection, dirs: AppDirs) -> dict[str, str]:
    """Return the paths of the checkpoints by label: the selected one, and those in the folder of weights."""
    folder = dirs.checkpoints
    paths = {str(path.relative_to(folder)): str(path) for path in weight_files.checkpoints(folder)}
    weight = selection.config.run.weight
    is_listed = any(os.path.abspath(path) == os.path.abspath(weight) for path in paths.values())
    return paths if is_listed else {Path(weight).name: weight, **paths}


def _init_images(x: Axis, y: Axis, selection: ModelSelection, dirs: AppDirs) -> dict[str, Any] | None:
    """Show the init images of a grid, which are also those of the page Generate; return the options of img2img.

    None if an image is needed and there is none yet.
    """
    is_axis = DENOISING in (x.name, y.name)
    key = persistent_key("grid of img2img", False)
    if not is_axis and not st.checkbox("From init images (img2img)", key=key):
        return {}
    images = init_inputs.images(dirs)
    if not images:
        st.info("Upload an init image, from which all cells start.")
        return None
    if is_axis:
        return {"task": "img2img", "img": images}
    key = persistent_key("compared strength", selection.config.sampling.strength, between(0.0, 1.0, float))
    return {"task": "img2img", "img": images, "strength": st.slider(DENOISING, 0.0, 1.0, key=key)}


def _axis(letter: str, default: str, source: Source) -> Axis | None:
    """Show an axis, and in place of the other one what is wrong with it."""
    try:
        return xy_axes.choose(letter, default, source)
    except UserError as error:
        plain.error(error)
        return None


def _request(x: Axis, y: Axis, source: Source, selection: ModelSelection, inputs: dict[str, Any]) -> Request:
    """Show the options that no axis sets; return what the axes, they and the `inputs` of img2img ask for."""
    sampling = {**inputs, **_options(selection, [xy_axes.OPTION_OF.get(axis.name, "") for axis in (x, y)])}
    configs = [xy_axes.config_of(cell, source, selection, sampling) for cell in xy_axes.cells(x, y, source)]
    number = sampling["num_cols"] * len(inputs.get("img") or [""])
    each = f" of {number} images" if number > 1 else ""
    plain.caption(f"{len(y.values)} × {len(x.values)} cells{each}: {len(configs) * number} images")
    return configs, y.labels, x.labels


def _options(selection: ModelSelection, hidden: list[str]) -> dict[str, Any]:
    """Show the options of all cells, without the `hidden` ones; return them."""
    defaults = selection.config.sampling
    labels = {"sample_step": "Steps", "guidance_scale": "CFG scale", "seed": "Seed"}
    values: dict[str, Any] = {"num_rows": 1, "preview_interval": _PREVIEW_INTERVAL}
    with st.container(horizontal=True):
        for name, label in labels.items():
            if name not in hidden:
                default = getattr(defaults, name)
                kind = type(default)
                low, high = kind(name == "sample_step"), kind(_MAXIMA[name])
                key = persistent_key(f"compared {name}", default, between(low, high, kind))
                values[name] = st.number_input(label, low, high, key=key, width=150)
        key = persistent_key("images of a cell", 1, between(1, 8))
        values["num_cols"] = int(st.number_input("Images of a cell", 1, 8, key=key, width=150))
    return values


def _run(dirs: AppDirs) -> TrainingJob | None:
    """Show the training runs that have embedding files; return the chosen one, None if there are none."""
    jobs: dict[str, TrainingJob] = {}
    for job in training_jobs.all_jobs(dirs.training_runs, browser.identify()):
        with contextlib.suppress(UserError):  # a damaged record
            if job.launch.placeholder_token and job.embedding_files():
                jobs[job.name] = job
    if not jobs:
        return None
    key = persistent_key("compared run", next(iter(jobs)), jobs.__contains__)
    return jobs[st.selectbox("Training run", list(jobs), key=key)]


def initializer_token(embedding: Embedding) -> str:
    """Return the initializer token in the embedding's metadata, or a neutral noun if it names none."""
    token = str(concept_options(embedding).get("initializer_token") or "").strip()
    return token if 0 < len(token) <= _MAX_TOKEN and token.isprintable() else _DEFAULT_TOKEN
