"""Generation parameters of an image, filled in on the page Generate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from demo.app import browser, options, page_drop, plain
from demo.app.app_dirs import AppDirs
from demo.app.labels import LABELS
from demo.app.options import MAIN, PROMPT_KEYS, RUN, TABS, TASKS, between, widget_key
from demo.app.server import image_texts
from gm.config import RunConfig, SamplingConfig, schema
from gm.diffusion import guidance, samplers, schedule
from gm.errors import UserError
from gm.sampling import resolution

_NOTE_KEY = "filled in"  # of what was filled in last, in the session state
_DROP_KEY = "drop-zone"  # of the container of the box for images, also a CSS class
_MOUNT_KEY = "input widgets"  # of a number that uploads have in their keys, so that another empties them
_BOXES = {"prompt": "Prompt", "negative_prompt": "Negative prompt", "task": "Task", "strength": "Denoising strength"}
_RESOLVERS = {"sampler": samplers.resolve_name, "schedule": schedule.resolve_name, "guider": guidance.resolve_name}
_MAX_VALUE = 80  # characters of a value in the note


def upload_key(name: str) -> str:
    """Return the key of an upload of an init image or a mask; it changes when another image takes its place."""
    return f"{name} {st.session_state.get(_MOUNT_KEY, 0)}"


def set_inputs(img: list[str], mask: str | None) -> None:
    """Set the init images and the mask in place of those that are uploaded."""
    st.session_state["previous inputs"] = {"img": img, "mask": mask}
    st.session_state[_MOUNT_KEY] = st.session_state.get(_MOUNT_KEY, 0) + 1


def send_to(task: str, path: Path, parameters: dict[str, Any]) -> None:
    """Take the image at `path`, with its prompts, for img2img or inpaint; called before the widgets are shown."""
    for name in PROMPT_KEYS:
        st.session_state[name] = str(parameters.get(name) or "")
    st.session_state["task"] = task
    set_inputs([str(path)], None)
    st.session_state[_NOTE_KEY] = (path.name, ["Init images", "Prompt", "Negative prompt"], [])


def apply_parameters(parameters: dict[str, Any], source: str = "", unused: Sequence[str] = ()) -> None:
    """Set the widgets to an image's generation parameters; must be called before the widgets are shown.

    What the widgets cannot have, because the file is damaged or another's, is left out and named. `source` is the
    image's name, `unused` what else to say is not used.
    """
    # The parameters belong to one image.
    parameters = {**_with_size(parameters), "num_cols": 1, "batch_size": 1}
    filled, unusable = _apply_options(parameters)
    accepted = {
        **dict.fromkeys(PROMPT_KEYS, lambda value: isinstance(value, str)),
        "task": lambda value: value in TASKS,
        "strength": between(0.0, 1.0, float),
    }
    for name, accepts in accepted.items():
        if name == "strength" and parameters.get("task") == "txt2img":
            continue  # it is written, but not used
        is_usable = name in parameters and accepts(parameters[name])
        if is_usable or name in PROMPT_KEYS:
            _set(name, parameters[name] if is_usable else "", _BOXES[name], filled)
        if name in parameters and not is_usable:
            unusable.append(name.replace("_", " "))
    st.session_state["requested embeddings"] = _texts(parameters.get("textual_inversion_weight"))
    masks = _texts([parameters.get("mask")])
    set_inputs(_texts(parameters.get("img")), masks[0] if masks else None)
    st.session_state[_NOTE_KEY] = (source, filled, list(unused))
    if unusable:
        plain.toast(f"The image's parameters are damaged, these were left as they are: {', '.join(unusable)}")


def drop_zone(dirs: AppDirs) -> None:
    """Show the upload of an image whose generation parameters are to be filled in; all of the page is a part of it."""
    key = f"dropped image {st.session_state.get('dropped images', 0)}"
    with st.container(key=_DROP_KEY):
        st.file_uploader(
            "Parameters from an image",
            key=key,
            type=["png", "jpg", "jpeg", "webp"],
            help="an image of this app, AUTOMATIC1111, InvokeAI or ComfyUI: drop it anywhere on the page, and its "
            "parameters are filled in",
            on_change=_apply_dropped,
            args=(key, dirs),
        )
        page_drop.show(_DROP_KEY, key="page drop")
    if error := st.session_state.get("dropped image error"):
        plain.error(error)


def show_note() -> None:
    """Show what was filled in last, until it is closed."""
    if _NOTE_KEY not in st.session_state:
        return
    source, filled, unused = st.session_state[_NOTE_KEY]
    with st.container(border=True):
        left, right = st.columns([12, 1])
        right.button(
            ":material/close:", key="close note", help="Close", on_click=st.session_state.pop, args=(_NOTE_KEY,)
        )
        with left:
            changes = " · ".join(filled) or "nothing, as everything was so already"
            plain.caption(f"Filled in from {source or 'the image'}: {changes}")
            if unused:
                plain.caption(f"Not used: {' · '.join(unused)}")


def _apply_dropped(key: str, dirs: AppDirs) -> None:
    file = st.session_state.get(key)
    st.session_state.pop("dropped image error", None)
    if file is not None:
        apply_content(file.getvalue(), file.name, dirs)
        # Emptied, to take the next; with an error the file stays, and the error goes with it.
        if "dropped image error" not in st.session_state:
            st.session_state["dropped images"] = st.session_state.get("dropped images", 0) + 1


def apply_content(content: bytes, name: str, dirs: AppDirs) -> None:
    """Fill in the parameters in an image that a visitor gives, or remember why that is not possible."""
    try:
        content_parameters = image_texts.read(content, name)
    except UserError as error:
        st.session_state["dropped image error"] = str(error)
        return
    parameters, unused = dict(content_parameters.options), list(content_parameters.unused)
    # The file may be a stranger's: of the machine's images it can name those alone that this browser has itself.
    folder = dirs.images(browser.identify()).resolve()
    images = _texts(parameters.get("img"))
    parameters["img"] = [path for path in images if _is_below(path, folder)]
    if not _is_below(parameters.get("mask"), folder):
        parameters["mask"] = None
    if len(parameters["img"]) < len(images):
        unused.append("init image: not this browser's; upload it")
    apply_parameters(
        parameters, f"{name} ({content_parameters.program})" if content_parameters.program else name, unused
    )


def _is_below(path: Any, folder: Path) -> bool:
    try:
        return isinstance(path, str) and Path(path).resolve().is_relative_to(folder)
    except (OSError, ValueError):
        return False


def _apply_options(parameters: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Set the widgets of options; return what has changed, "label value" each, and the labels of unusable values."""
    filled: list[str] = []
    unusable: list[str] = []
    for name in (*MAIN, *(name for names in TABS.values() for name in names), *RUN):
        if name not in parameters:
            continue
        section = RunConfig if name in RUN else SamplingConfig
        value = _widget_value(name, parameters[name])
        if options.accepts(section, name)(value):
            _set(widget_key(name), value, LABELS[name], filled)
        else:
            unusable.append(LABELS[name])
    return filled, unusable


def _set(key: str, value: Any, label: str, filled: list[str]) -> None:
    """Set a widget, and add it to `filled` if that changes it."""
    if st.session_state.get(key) != value and (value or st.session_state.get(key)):
        text = " ".join(str(value).split())
        filled.append(f"{label}: {text if len(text) <= _MAX_VALUE else text[:_MAX_VALUE] + '…'}")
    st.session_state[key] = value


def _with_size(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters with height and width in place of one of SDXL's aspect ratios."""
    ratio = parameters.get("sd_xl_base_ratios")
    if not isinstance(ratio, str) or ratio not in resolution.ASPECT_RATIOS:
        return parameters
    width, height = resolution.ASPECT_RATIOS[ratio]
    return {**parameters, "width": width, "height": height}


def _widget_value(name: str, value: Any) -> Any:
    """Return the value of option `name` as its widget has it; None for a name that no resolver knows."""
    if name in _RESOLVERS:
        try:
            return _RESOLVERS[name](str(value))
        except UserError:
            return None
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return options.text_of(value)
    kind = None if name in RUN else schema.option_type(SamplingConfig, name)[0]
    return float(value) if kind is float and type(value) is int and abs(value) <= options.MAX_INT else value


def _texts(value: Any) -> list[str]:
    """Return those elements of a list that are text, [] for anything else."""
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
