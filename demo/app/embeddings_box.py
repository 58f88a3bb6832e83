"""The embeddings in the sidebar: one entry for each training run, older steps behind a menu, and uploads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from demo.app import browser, messages, plain
from demo.app.app_dirs import AppDirs
from demo.app.server import embedding_list, embedding_uploads, thumbnails, training_jobs
from gm.config import paths
from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.embeddings.names import split_token
from gm.errors import UserError

_WATCH_SECONDS = 4  # between scans of the folder of runs
_SIDE, _CARD_SIDE = 96, 256  # of a thumbnail
_MAX_CARDS = 60
_CARD_COLUMNS = 4
_UPLOAD_ERROR = "embedding upload error"


def show(default: list[str], dirs: AppDirs, family: str) -> dict[Path, list[Embedding]]:
    """Show the widgets; return the selected files with what they hold. `default` are paths of the model's own."""
    in_runs = _find_embeddings(dirs)
    available = in_runs | {str(path): Path(paths.expand(path)) for path in default}
    available |= {name: Path(path) for name, path in st.session_state.get("renamed embeddings", {}).items()}
    _update_selection(available, default, dirs)
    steps = embedding_list.steps_of_runs(in_runs.values())
    names = st.multiselect(
        "Embeddings",
        _offered(available, steps),
        key="embeddings",
        placeholder="None: train or upload one",
        label_visibility="collapsed",
    )
    loaded: dict[Path, list[Embedding]] = {}
    for name in names:
        try:
            loaded[available[name]] = embedding_io.load_all(available[name], family)
        except UserError as error:  # one file that cannot be used is left out alone
            messages.error(error, dirs)
        _selected(name, available, steps)
    if in_runs and st.button("Browse", icon=":material/grid_view:", key="browse embeddings", width="stretch"):
        _browse(available, steps)
    _watch(dirs, in_runs)
    _upload(dirs, family)
    return loaded


def select_embeddings(paths: Sequence[Path]) -> None:
    """Select embedding files in the folder of runs and rerun the app."""
    st.session_state["new embeddings"] = list(paths)
    st.rerun(scope="app")


def _offered(available: dict[str, Path], steps: dict[Path, dict[str, Path]]) -> list[str]:
    """Return the names to choose from: of a training run its best alone, and what is selected already."""
    older = {path for run in steps.values() for path in list(run.values())[1:]}
    selected = st.session_state.embeddings
    return [name for name, path in available.items() if path not in older or name in selected]


def _selected(name: str, available: dict[str, Path], steps: dict[Path, dict[str, Path]]) -> None:
    """Show a selected embedding: its thumbnail, its name, and a menu of its run's steps."""
    path = available[name]
    run = next((run for run in steps.values() if path in run.values()), {})
    columns = st.columns([2, 5, 2], vertical_alignment="center")
    with columns[0]:
        _thumbnail(path, _SIDE)
    columns[1].caption(plain.escape(name))
    if len(run) < 2:
        return
    by_path = {path: name for name, path in available.items()}
    key = f"step of {path}"
    with columns[2].popover(":material/history:", help="Steps of the training run"):
        labels = list(run)
        if st.session_state.get(key) not in labels:
            st.session_state[key] = next(label for label, each in run.items() if each == path)
        st.radio(
            "Step",
            labels,
            key=key,
            format_func=lambda label: "best by validation loss" if label == "best" else f"step {label}",
            on_change=_change_step,
            args=(name, key, {label: by_path[each] for label, each in run.items() if each in by_path}),
        )


def _change_step(name: str, key: str, names: dict[str, str]) -> None:
    """Put the chosen step of a run in the place of `name`, its other step."""
    chosen = names.get(st.session_state.pop(key))
    if chosen:
        selected = [chosen if each == name else each for each in st.session_state.embeddings]
        st.session_state.embeddings = list(dict.fromkeys(selected))


@st.dialog("Embeddings", width="large")
def _browse(available: dict[str, Path], steps: dict[Path, dict[str, Path]]) -> None:
    names = _offered(available, steps)[:_MAX_CARDS]
    for first in range(0, len(names), _CARD_COLUMNS):
        for column, name in zip(st.columns(_CARD_COLUMNS), names[first : first + _CARD_COLUMNS], strict=False):
            with column:
                _thumbnail(available[name], _CARD_SIDE)
                is_selected = name in st.session_state.embeddings
                plain.caption(name)
                label = "Selected" if is_selected else "Select"
                if st.button(plain.escape(label), key=f"card {name}", disabled=is_selected):
                    select_embeddings([available[name]])


def _thumbnail(path: Path, side: int) -> None:
    image = thumbnails.of_embedding(path)
    content = thumbnails.of_image(image, side, square=True) if image else None
    if content:
        st.image(content, width="stretch")
    else:
        st.markdown(":material/image:")


def _find_embeddings(dirs: AppDirs) -> dict[str, Path]:
    """Return the embedding files that this browser may see: not the uploads and runs that belong to others."""
    me = browser.identify()
    uploads = [folder for folder in dirs.all_uploads.glob("*") if folder.name != me]
    return embedding_list.find_embeddings(dirs.runs, [*uploads, *training_jobs.private_folders(dirs.training_runs, me)])


def _update_selection(available: dict[str, Path], default: list[str], dirs: AppDirs) -> None:
    """Set the multiselect's value: the selection of before, without files that are gone, with a newly added one."""
    selected = [name for name in st.session_state.get("embeddings", default) or [] if name in available]
    if "requested embeddings" in st.session_state:
        selected = _requested(available, dirs)
    added = st.session_state.pop("new embeddings", [])
    selected += [name for name, path in available.items() if path in added and name not in selected]
    st.session_state.embeddings = selected


def _requested(available: dict[str, Path], dirs: AppDirs) -> list[str]:
    """Return the names of the files that an image's parameters use, once after they are applied.

    A file that they give another placeholder token, `file=<token>`, is added to `available`.
    """
    requested = [Path(path) for path in st.session_state.pop("requested embeddings")]
    for path in requested:
        file, token = split_token(path)
        if token and path not in available.values() and file in available.values():
            renamed = st.session_state.setdefault("renamed embeddings", {})
            renamed[f"{token} ({file})"] = str(path)
            available[f"{token} ({file})"] = path
        if path not in available.values():
            name = messages.for_page(path, dirs)
            plain.warning(
                f"The embedding file {name} of these parameters is missing; upload it below or train it again."
            )
    return [name for name, path in available.items() if path in requested]


def _upload(dirs: AppDirs, family: str) -> None:
    uploaded = st.file_uploader(
        "Upload embedding files",
        accept_multiple_files=True,
        key="embedding file",
        help="of this toolkit, diffusers (both files together), AUTOMATIC1111, ComfyUI, kohya …",
    )
    file_ids = [file.file_id for file in uploaded]
    if st.session_state.get("uploaded file ids") != file_ids:
        st.session_state["uploaded file ids"] = file_ids
        st.session_state.pop(_UPLOAD_ERROR, None)
        if uploaded:
            _store([(file.name, file.getvalue()) for file in uploaded], dirs, family)
    if error := st.session_state.get(_UPLOAD_ERROR):  # as long as the files are there
        messages.error(error, dirs)


def _store(files: list[tuple[str, bytes]], dirs: AppDirs, family: str) -> None:
    """Store and select uploaded files; an error is remembered."""
    try:
        stored = embedding_uploads.store_embeddings(files, dirs.uploads(browser.identify()), family)
    except UserError as error:
        st.session_state[_UPLOAD_ERROR] = str(error)
        return
    if len(stored) == len(files):
        for path, (name, _) in zip(stored, files, strict=True):
            messages.remember_name(path, name)
    select_embeddings(stored)


@st.fragment(run_every=_WATCH_SECONDS)
def _watch(dirs: AppDirs, listed: dict[str, Path]) -> None:
    """Rerun the app when an embedding file was added to or removed from the folder of runs."""
    browser.state(dirs)  # this tab is still there
    if _find_embeddings(dirs).keys() != listed.keys():
        st.rerun()
    st.caption("New files are listed automatically.")
