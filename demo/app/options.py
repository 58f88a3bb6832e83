"""Widgets of the options, generated from the fields of the config."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Collection, Sequence
from typing import Any

import streamlit as st

from demo.app import plain
from demo.app.labels import LABELS
from demo.app.server import limits
from gm.config import RunConfig, SamplingConfig, schema
from gm.diffusion import guidance, samplers, schedule
from gm.errors import UserError
from gm.sampling import resolution

MAIN = ("sample_step", "guidance_scale", "seed", "num_cols")  # always visible
TABS = {  # under "More options"
    "Sampler": (
        "sampler",
        "schedule",
        "eta",
        "ddim_eta",
        "s_noise",
        "s_churn",
        "s_tmin",
        "s_tmax",
        "sigma_min",
        "sigma_max",
        "rho",
    ),
    "Guidance": ("guider", "guidance_rescale", "prompt_weights", "embedding_adjust", "embedding_class_word"),
    "Size": (
        "sd_xl_base_ratios",
        "height",
        "width",
        "orig_height",
        "orig_width",
        "target_height",
        "target_width",
        "crop_coords_top",
        "crop_coords_left",
    ),
    "Refiner": (
        "add_pipeline",
        "pipeline_config",
        "pipeline_weight",
        "stage2strength",
        "aesthetic_score",
        "negative_aesthetic_score",
    ),
    "Batch, VAE, noise": (
        "num_rows",
        "batch_size",
        "vae_tiling",
        "vae_tile_size",
        "vae_slicing",
        "preview_interval",
        "init_latent_path",
        "init_latent_index",
    ),
}
SET_BY_PAGE = {
    "task",
    "textual_inversion_weight",
    "prompt",
    "negative_prompt",
    "save_path",
    "interactive",
    "base_model",
    "img",
    "mask",
    "strength",
}
RUN = ("vae", "unet", "lora_weight", "pooling", "ms_mode", "precision", "low_memory", "device_target")
_PROMPT_KEYS = ("prompt", "negative_prompt")  # widgets that the page Generate defines itself
_TASK_KEYS = ("task", "strength")
TASKS = ("txt2img", "img2img", "inpaint")
_CHOICES: dict[str, Sequence[Any]] = {
    "sampler": list(samplers.SAMPLERS),
    "schedule": list(schedule.SCHEDULES),
    "guider": list(guidance.GUIDERS),
    "sd_xl_base_ratios": [None, *resolution.ASPECT_RATIOS],
}
_RESOLVERS = {"sampler": samplers.resolve_name, "schedule": schedule.resolve_name, "guider": guidance.resolve_name}
_MAX_INT = 2**53 - 1  # a number of JavaScript
Accepts = Callable[[Any], bool]  # whether a widget can have a value


def widget_key(name: str) -> str:
    """Return the key in the session state of the widget of option `name`."""
    return f"option {name}"


def persistent_key(name: str, default: Any, accepts: Accepts | None = None) -> str:
    """Return the key of a widget that starts with `default` and whose value is preserved.

    A value from before, or from a file, that the widget does not accept becomes the default: Streamlit would show an
    exception in place of the page.
    """
    key = widget_key(name)
    accepts = accepts or (lambda value: default is None or isinstance(value, type(default)))
    if key not in st.session_state or not accepts(st.session_state[key]):
        st.session_state[key] = default
    return key


def between(low: float, high: float, kind: type = int) -> Accepts:
    """Return whether a value is a number of `kind` from `low` to `high`."""
    kinds = (int,) if kind is int else (int, float)
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high


def main_options(defaults: SamplingConfig) -> dict[str, Any]:
    """Show the sampling options that are always visible; return their values."""
    return _in_columns(SamplingConfig, MAIN, defaults, len(MAIN))


def more_options(defaults: SamplingConfig, hidden: Collection[str] = ()) -> dict[str, Any]:
    """Show the other sampling options, except those the page sets and the `hidden` ones; return their values."""
    values: dict[str, Any] = {}
    applicable = {tab: [name for name in names if name not in hidden] for tab, names in TABS.items()}
    tabs = {tab: names for tab, names in applicable.items() if names}
    with st.expander("More options"):
        for tab, names in zip(st.tabs(list(tabs)), tabs.values(), strict=True):
            with tab:
                values |= _in_columns(SamplingConfig, names, defaults, 3)
    return values


def run_options(defaults: RunConfig, hidden: Collection[str] = ()) -> dict[str, Any]:
    """Show the run options except the `hidden` ones; return their values."""
    values = {name: widget(RunConfig, name, getattr(defaults, name)) for name in RUN if name not in hidden}
    return {name: "" if value is None else value for name, value in values.items()}


def widget(section: type, name: str, default: Any) -> Any:
    """Show the widget of option `name` of the config class `section` and return its value."""
    field = next(f for f in dataclasses.fields(section) if f.name == name)
    kind, _ = schema.option_type(section, name)
    is_list = typing.get_origin(kind) is list
    choices = _choices(section, name)
    is_text = not choices and kind not in (bool, int, float)
    shared = {
        "label": LABELS[name],
        "help": field.metadata["doc"],
        "key": persistent_key(name, _text(default) if is_text else default, _accepts(section, name)),
    }
    if choices:
        return st.selectbox(options=choices, format_func=lambda value: _choice_label(name, value), **shared)
    if kind is bool:
        return st.checkbox(**shared)
    if is_list:
        return [line.strip() for line in (st.text_area(**shared) or "").splitlines() if line.strip()]
    if is_text:
        return (st.text_input(**shared) or "").strip() or None
    low, high = _number_limits(section, name)
    step = field.metadata["step"] if kind is int else 0.1
    return st.number_input(step=kind(step), min_value=kind(low), max_value=kind(high), **shared)


def persist_widgets() -> None:
    """Preserve the values of widgets on other pages: Streamlit drops the state of widgets that are not shown."""
    for name in list(st.session_state):
        if str(name).startswith(widget_key("")) or name in (*_PROMPT_KEYS, *_TASK_KEYS):
            st.session_state[name] = st.session_state[name]


def apply_parameters(parameters: dict[str, Any]) -> None:
    """Set the widgets to an image's generation parameters; must be called before the widgets are shown.

    What the widgets cannot have, because the file is damaged or another's, is left out and named.
    """
    unusable = []
    for name in (*RUN, *MAIN, *(name for names in TABS.values() for name in names)):
        if name not in parameters:
            continue
        section = RunConfig if name in RUN else SamplingConfig
        value = _widget_value(name, parameters[name])
        if _accepts(section, name)(value):
            st.session_state[widget_key(name)] = value
        else:
            unusable.append(LABELS[name])
    accepted = {
        **dict.fromkeys(_PROMPT_KEYS, lambda value: isinstance(value, str)),
        "task": lambda value: value in TASKS,
        "strength": between(0.0, 1.0, float),
    }
    for name, accepts in accepted.items():
        if name in parameters and accepts(parameters[name]):
            st.session_state[name] = parameters[name]
        elif name in _PROMPT_KEYS:
            st.session_state[name] = ""
        if name in parameters and not accepts(parameters[name]):
            unusable.append(name.replace("_", " "))
    st.session_state["requested embeddings"] = _texts(parameters.get("textual_inversion_weight"))
    masks = _texts([parameters.get("mask")])
    st.session_state["previous inputs"] = {"img": _texts(parameters.get("img")), "mask": masks[0] if masks else None}
    if unusable:
        plain.toast(f"The image's parameters are damaged, these were left as they are: {', '.join(unusable)}")
    for name in ("num_cols", "num_rows"):  # the parameters belong to one image
        st.session_state[widget_key(name)] = 1


def _widget_value(name: str, value: Any) -> Any:
    """Return the value of option `name` as its widget has it; None for a name that no resolver knows."""
    if name in _RESOLVERS:
        try:
            return _RESOLVERS[name](str(value))
        except UserError:
            return None
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return _text(value)
    kind = None if name in RUN else schema.option_type(SamplingConfig, name)[0]
    return float(value) if kind is float and type(value) is int and abs(value) <= _MAX_INT else value


def _choices(section: type, name: str) -> list[Any]:
    field = next(f for f in dataclasses.fields(section) if f.name == name)
    return list(_CHOICES.get(name) or field.metadata["choices"])


def _number_limits(section: type, name: str) -> tuple[float, float]:
    """Return the least and the highest value of an option on the page."""
    metadata = next(f for f in dataclasses.fields(section) if f.name == name).metadata
    return metadata["minimum"], min(metadata["maximum"], limits.MAXIMA.get(name, math.inf), _MAX_INT)


def _accepts(section: type, name: str) -> Accepts:
    """Return whether the widget of an option can have a value."""
    choices = _choices(section, name)
    if choices:
        return lambda value: any(value == choice and type(value) is type(choice) for choice in choices)
    kind, optional = schema.option_type(section, name)
    if kind is bool:
        return lambda value: isinstance(value, bool)
    if kind in (int, float):
        is_number = between(*_number_limits(section, name), kind)
        return lambda value: (optional and value is None) or is_number(value)
    return lambda value: value is None or isinstance(value, str)


def _texts(value: Any) -> list[str]:
    """Return those elements of a list that are text, [] for anything else."""
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _in_columns(section: type, names: Sequence[str], defaults: Any, count: int) -> dict[str, Any]:
    columns = st.columns(count)
    values: dict[str, Any] = {}
    for number, name in enumerate(names):
        with columns[number % count]:
            values[name] = widget(section, name, getattr(defaults, name))
    return values


def _text(value: Any) -> str:
    """Return the text of a text field; a list has a line for each element."""
    return "\n".join(value) if isinstance(value, list) else value or ""


def _choice_label(name: str, value: Any) -> str:
    if name == "sampler":
        return samplers.TITLES[value]
    if name == "sd_xl_base_ratios" and value:
        return "{} · {}×{}".format(value, *resolution.ASPECT_RATIOS[value])
    if name == "ms_mode":
        return {0: "graph", 1: "PyNative"}[value]
    return "default" if value in (None, "") else str(value)
