"""Init images and mask of img2img and inpaint: uploaded, painted, or from the gallery."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import streamlit as st
from PIL import Image

from demo.app import browser, mask_brush, messages, options, plain, reuse
from demo.app.app_dirs import AppDirs
from demo.app.server import uploads
from gm.data import image_reader
from gm.errors import UserError

_BRUSH_KEY = "painted mask"  # of the hash of the mask that was painted last, in the session state


def show(task: str, default_strength: float, dirs: AppDirs) -> dict[str, Any]:
    """Show the inputs of a task; return the paths of the stored files, and the denoising strength."""
    if task == "txt2img":
        return {}
    inputs: dict[str, Any] = {"img": images(dirs)}
    if task == "inpaint":
        inputs["mask"] = _mask(inputs["img"], dirs)
    if not options.between(0.0, 1.0, float)(st.session_state.get("strength")):
        st.session_state["strength"] = default_strength
    inputs["strength"] = st.slider("Denoising strength", 0.0, 1.0, key="strength", help="1 ignores the init image")
    return inputs


def images(dirs: AppDirs) -> list[str]:
    """Show the upload of init images; return their paths."""
    files = st.file_uploader("Init images", accept_multiple_files=True, key=reuse.upload_key("img"))
    return _inputs("img", files, dirs)


def _mask(images: list[str], dirs: AppDirs) -> str | None:
    """Show the brush and the upload of a mask; return the path of the mask, the later of the two."""
    if images:
        st.caption("Paint over what to inpaint.")
        _paint(Path(images[0]), dirs)
    else:
        st.caption("Upload an init image, and paint the mask over it.")
    with st.expander("Upload a mask instead"):
        file = st.file_uploader("Mask", key=reuse.upload_key("mask"), help="white is repainted, black is preserved")
        paths = _inputs("mask", [file] if file else [], dirs)
    return paths[0] if paths else None


def _paint(image: Path, dirs: AppDirs) -> None:
    """Show the brush over an image, and store the mask when it has changed."""
    mask = _previous("mask")
    # Another image, or a mask from elsewhere, is another brush.
    mount = st.session_state.get("brush mount", 0)
    content = mask_brush.show(image, Path(mask[0]) if mask else None, reuse.upload_key(f"brush {image.stem} {mount}"))
    digest = hashlib.sha256(content).hexdigest() if content else ""
    if not content or st.session_state.get(_BRUSH_KEY) == digest:
        return
    try:
        path = store_mask(content, image, _folder(dirs))
    except UserError as error:
        messages.error(error, dirs)
        return
    if path:
        messages.remember_name(path, "the painted mask")
    st.session_state[_BRUSH_KEY] = digest
    _set_previous("mask", [str(path)] if path else [])


def store_mask(content: bytes, image: Path, folder: Path) -> Path | None:
    """Store a painted mask in the size of its image; return its path, None if nothing is painted.

    `content` is a PNG from a browser. UserError if it is not one.
    """
    path = uploads.store_image(content, folder)
    mask = image_reader.read_image(path).rgb.convert("L").resize(image_reader.read_image(image).rgb.size)
    path.unlink()
    if not mask.getbbox():
        return None
    png = io.BytesIO()
    Image.Image.save(mask, png, "PNG")
    return uploads.store_image(png.getvalue(), folder)


def _inputs(name: str, files: list[Any], dirs: AppDirs) -> list[str]:
    """Return the paths of the uploads `files`, stored once, or of those of before if nothing is uploaded.

    Those of before are uploads whose widget Streamlit has emptied, and images of the gallery.
    """
    ids = [file.file_id for file in files]
    if ids and st.session_state.get(f"{name} ids") != ids:
        try:
            uploads.check_number(len(files))
            paths = [_store(file, dirs) for file in files]
        except UserError as error:
            plain.error(error)
            return []
        st.session_state[f"{name} ids"] = ids
        st.session_state["brush mount"] = st.session_state.get("brush mount", 0) + 1
        _set_previous(name, list(dict.fromkeys(paths)))
        if name == "img":
            _set_previous("mask", [])
    paths = _previous(name)
    if paths and not files:
        _show_previous(name, paths)
    return paths


def _store(file: Any, dirs: AppDirs) -> str:
    """Store an uploaded image and return its path; UserError, with the name of the file, if it cannot be used."""
    try:
        path = uploads.store_image(file.getvalue(), _folder(dirs), lambda note: plain.toast(f"{file.name}: {note}"))
    except UserError as error:
        raise UserError(f"{file.name}: {error}") from error
    messages.remember_name(path, file.name)
    return str(path)


def _show_previous(name: str, paths: list[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        # With the brush the image is seen already, and the mask as well.
        if st.session_state.get("task") == "inpaint":
            plain.caption("In use: " + ", ".join(messages.name_of(path) for path in paths))
        else:
            st.image(paths, caption=[plain.escape(messages.name_of(path)) for path in paths], width=96)
        st.button("Remove", key=f"remove {name}", on_click=_remove, args=(name,))


def _remove(name: str) -> None:
    _set_previous(name, [])
    if name == "img":
        _set_previous("mask", [])
    st.session_state["brush mount"] = st.session_state.get("brush mount", 0) + 1
    st.session_state.pop(_BRUSH_KEY, None)


def _previous(name: str) -> list[str]:
    paths = st.session_state.get("previous inputs", {}).get(name) or []
    return [path for path in ([paths] if isinstance(paths, str) else paths) if os.path.isfile(path)]


def _set_previous(name: str, paths: list[str]) -> None:
    st.session_state["previous inputs"] = {**st.session_state.get("previous inputs", {}), name: paths}


def _folder(dirs: AppDirs) -> Path:
    return dirs.images(browser.identify()) / "init_images"
