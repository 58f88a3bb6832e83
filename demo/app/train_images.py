"""Training images on the page Train: uploaded, shown as training crops them, captioned and removed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import plain, train_options
from demo.app.app_dirs import AppDirs
from demo.app.server import training_images
from demo.app.server.training_images import Framing, TrainingImage
from demo.app.sidebar import ModelSelection
from gm.data import bucketing
from gm.errors import UserError

FOLDER = "training images"  # key in the session state: the folder of this browser's images
_FEW, _MANY = 3, 20
_THUMBNAIL = 320  # pixels, of which a screen may show each with two of its own
_CARD = 168  # two beside each other on a phone
_PAGE = 24  # images shown at once
_FIT = 4  # images; more scroll in a box
_HEIGHT = 600  # of that box, in which a row is cut off, so that one sees that there are more


def folder() -> Path | None:
    """Return the folder of the training images, None if there are none."""
    path = st.session_state.get(FOLDER)
    return Path(path) if isinstance(path, str) and os.path.isdir(path) else None


def upload(dirs: AppDirs) -> list[TrainingImage]:
    """Show the box for images, and how many there are; return them."""
    files = st.file_uploader(
        "Training images",
        accept_multiple_files=True,
        # Its list would be a second one beside the images: each upload empties it.
        key=f"images {st.session_state.get('uploads of images', 0)}",
        help="3 to 20 images, and what belongs to them: the mask of cat.jpg is cat.mask.png (white is trained on), its "
        "caption cat.txt",
    )
    if files:
        _add([(file.name, file.getvalue()) for file in files], dirs)
    if message := st.session_state.get("upload error"):
        plain.error(message)
    images = _load()
    _check_number(len(images))
    return images


def gallery(images: list[TrainingImage], selection: ModelSelection, options: dict[str, Any]) -> None:
    """Show the images as training crops them, each with its caption."""
    if not images:
        return
    framing = _framing(selection)
    pages = -(-len(images) // _PAGE)
    numbers = range(1, pages + 1)
    page = st.radio("Page", numbers, key="page of images", horizontal=True) if pages > 1 else 1
    example = train_options.example_prompt(options)
    has_captions = bool(train_options.value("captions", selection))
    enlarged = 0
    box = st.container(height=_HEIGHT if len(images) > _FIT else "content", border=False)
    with box, st.container(horizontal=True):
        for image in images[(page - 1) * _PAGE : page * _PAGE]:
            with st.container(width=_CARD, gap="xsmall"):
                enlarged += _card(image, framing, example if has_captions else "")
    captioned = sum(bool(image.caption) for image in images)
    if has_captions and captioned:
        without = len(images) - captioned
        others = f"; templates for the other {without}" if without else ""
        plain.caption(f"{captioned} of {len(images)} images have captions{others}.")
    if enlarged:
        plain.warning(
            f"{enlarged} images here are smaller than training needs and are enlarged; larger ones have more detail."
        )
    st.button("Remove all images", icon=":material/delete:", on_click=_remove_all)


def _remove_all() -> None:
    st.session_state[FOLDER] = ""  # a key that is missing would be restored


def _add(files: list[tuple[str, bytes]], dirs: AppDirs) -> None:
    """Add uploaded files and empty the upload; an error stays on the page until the next upload."""
    target = folder() or dirs.training_runs / "images" / secrets.token_hex(8)
    st.session_state.pop("upload error", None)
    try:
        training_images.add(files, target, plain.toast)
        st.session_state[FOLDER] = str(target)
    except UserError as error:
        st.session_state["upload error"] = str(error)
    st.session_state["uploads of images"] = st.session_state.get("uploads of images", 0) + 1
    st.rerun()


def _load() -> list[TrainingImage]:
    path = folder()
    try:
        return training_images.load(path) if path else []
    except (UserError, OSError) as error:
        plain.error(error)
        return []


def _check_number(number: int) -> None:
    if number == 0:
        st.caption(f"{_FEW} to {_MANY} images of one subject or style, with different backgrounds and light.")
    elif number < _FEW:
        plain.warning(
            f"{number} image{'s' if number > 1 else ''} so far: with fewer than {_FEW} the embedding takes the "
            "background for a part of the concept."
        )
    else:
        enough = "" if number <= _MANY else f"; more than {_MANY} seldom help"
        st.caption(f"{number} images{enough}.")


def _framing(selection: ModelSelection) -> Framing:
    side = int(train_options.value("resolution", selection) or selection.config.model.resolution)
    buckets: list[tuple[int, int]] = []
    if train_options.value("enable_bucket", selection):
        buckets = bucketing.make_bucket_resolutions(side, selection.config.data.bucket_reso_steps)
    return Framing(side, tuple(buckets), bool(train_options.value("center_crop", selection)))


def _card(image: TrainingImage, framing: Framing, example: str) -> bool:
    """Show an image; `example` is the prompt in place of a caption, "" if no captions are used. Return if enlarged."""
    enlarged = False
    try:
        thumbnail = training_images.thumbnail(image, framing, _THUMBNAIL)
        st.image(thumbnail.content, width=_CARD)
        height, width = thumbnail.original
        enlarged = thumbnail.enlarged
        plain.caption(f"{image.name} · {width}×{height}{', enlarged' if enlarged else ''}")
    except UserError as error:
        plain.error(train_options.name_boxes(str(error)))
    if example:
        key = f"caption {image.path}"
        st.session_state.setdefault(key, image.caption)
        st.text_area(
            "Caption",
            key=key,
            height=76,
            max_chars=2000,
            placeholder=example,
            label_visibility="collapsed",
            on_change=_caption_changed,
            args=(image, key),
        )
    st.button("Remove", key=f"remove {image.path}", type="tertiary", on_click=training_images.remove, args=(image,))
    return enlarged


def _caption_changed(image: TrainingImage, key: str) -> None:
    try:
        training_images.set_caption(image.path, st.session_state[key])
    except UserError as error:
        plain.toast(error)
