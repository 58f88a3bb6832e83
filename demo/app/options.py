"""Widgets of the options, generated from the fields of the config."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Collection, Sequence
from typing import Any

import streamlit as st

from demo.app.labels import LABELS
from demo.app.server import limits
from gm.config import RunConfig, SamplingConfig, schema
from gm.diffusion import guidance, samplers, schedule

MAIN = (  # always visible
    "sampler",
    "schedule",
    "sample_step",
    "guidance_scale",
    "width",
    "height",
    "num_cols",
    "batch_size",
    "seed",
)
TABS = {  # under "More options"
    "Sampler": (
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
    "VAE, previews, noise": (
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
    "num_rows",
    "sd_xl_base_ratios",
}
RUN = ("vae", "unet", "lora_weight", "pooling", "ms_mode", "precision", "low_memory", "device_target")
PROMPT_KEYS = ("prompt", "negative_prompt")  # widgets that the page Generate defines itself
_TASK_KEYS = ("task", "strength")
TASKS = ("txt2img", "img2img", "inpaint")
_CHOICES: dict[str, Sequence[Any]] = {
    "sampler": list(samplers.SAMPLERS),
    "schedule": list(schedule.SCHEDULES),
    "guider": list(guidance.GUIDERS),
}
RANDOM_SEED = -1  # as in AUTOMATIC1111
# Where a widget differs from its option.
_MINIMA = {"seed": RANDOM_SEED}
_HELP = {
    "seed": "of the first image, image k uses seed + k; -1 is another one each time",
    "num_cols": "how many batches are generated, one after another",
    "batch_size": "images of a batch, which are generated at once; more take more memory",
    "width": "image width in pixels; default: the model's, or that of the init image",
    "height": "image height in pixels; default: the model's, or that of the init image",
}
MAX_INT = 2**53 - 1  # a number of JavaScript
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
    return {name: run_option(defaults, name) for name in RUN if name not in hidden}


def run_option(defaults: RunConfig, name: str) -> Any:
    """Show the widget of a run option and return its value."""
    value = widget(RunConfig, name, getattr(defaults, name))
    return "" if value is None else value


def widget(section: type, name: str, default: Any, step: float | None = None, placeholder: str = "") -> Any:
    """Show the widget of option `name` of the config class `section` and return its value.

    `step` is that of a number's buttons, `placeholder` what an empty field stands for.
    """
    field = next(f for f in dataclasses.fields(section) if f.name == name)
    kind, _ = schema.option_type(section, name)
    is_list = typing.get_origin(kind) is list
    choices = _choices(section, name)
    is_text = not choices and kind not in (bool, int, float)
    shared = {
        "label": LABELS[name],
        "help": _HELP.get(name, field.metadata["doc"]),
        "key": persistent_key(name, text_of(default) if is_text else default, accepts(section, name)),
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
    step = step or (field.metadata["step"] if kind is int else 0.1)
    limits = {"min_value": kind(low), "max_value": kind(high)}
    return st.number_input(step=kind(step), placeholder=placeholder or None, **limits, **shared)


def persist_widgets() -> None:
    """Preserve the values of widgets on other pages: Streamlit drops the state of widgets that are not shown."""
    for name in list(st.session_state):
        if str(name).startswith(widget_key("")) or name in (*PROMPT_KEYS, *_TASK_KEYS):
            st.session_state[name] = st.session_state[name]


def _choices(section: type, name: str) -> list[Any]:
    field = next(f for f in dataclasses.fields(section) if f.name == name)
    return list(_CHOICES.get(name) or field.metadata["choices"])


def _number_limits(section: type, name: str) -> tuple[float, float]:
    """Return the least and the highest value of an option on the page."""
    metadata = next(f for f in dataclasses.fields(section) if f.name == name).metadata
    return _MINIMA.get(name, metadata["minimum"]), min(metadata["maximum"], limits.MAXIMA.get(name, math.inf), MAX_INT)


def accepts(section: type, name: str) -> Accepts:
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


def _in_columns(section: type, names: Sequence[str], defaults: Any, count: int) -> dict[str, Any]:
    columns = st.columns(count)
    values: dict[str, Any] = {}
    for number, name in enumerate(names):
        with columns[number % count]:
            values[name] = widget(section, name, getattr(defaults, name))
    return values


def text_of(value: Any) -> str:
    """Return the text of a text field; a list has a line for each element."""
    return "\n".join(value) if isinstance(value, list) else value or ""


def _choice_label(name: str, value: Any) -> str:
    if name == "sampler":
        return samplers.TITLES[value]
    if name == "ms_mode":
        return {0: "graph", 1: "PyNative"}[value]
    return "default" if value in (None, "") else str(value)
