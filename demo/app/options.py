"""Options as widgets, generated from the fields of the config."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import streamlit as st

from gm.config import RunConfig, SamplingConfig, schema
from gm.diffusion import guidance, samplers, schedule
from gm.sampling import resolution

# What is shown at once, what opens on a click, and what the page sets by itself.
FIRST = ("sample_step", "guidance_scale", "seed", "num_cols")
GROUPS = {
    "Sampler": (
        "sampler",
        "schedule",
        "eta",
        "s_noise",
        "s_churn",
        "s_tmin",
        "s_tmax",
        "sigma_min",
        "sigma_max",
        "rho",
    ),
    "Guidance": ("guider", "guidance_rescale", "prompt_weights"),
    "Size": (
        *("sd_xl_base_ratios", "height", "width", "orig_height", "orig_width", "target_height", "target_width"),
        *("crop_coords_top", "crop_coords_left"),
    ),
    "Refiner": (
        *("add_pipeline", "pipeline_config", "pipeline_weight", "stage2strength", "aesthetic_score"),
        "negative_aesthetic_score",
    ),
    "Batches, memory, noise": (
        *("num_rows", "batch_size", "vae_tiling", "vae_tile_size", "vae_slicing", "preview_interval"),
        *("init_latent_path", "init_latent_index"),
    ),
}
BY_THE_PAGE = {"task", "textual_inversion_weight", "prompt", "negative_prompt", "save_path", "base_model"}
BY_THE_PAGE |= {"img", "mask", "strength"}
RUN = ("pooling", "ms_mode", "precision", "low_memory", "device_target")
_CHOICES: dict[str, Sequence[Any]] = {
    "sampler": list(samplers.SAMPLERS),
    "schedule": list(schedule.SCHEDULES),
    "guider": list(guidance.GUIDERS),
    "sd_xl_base_ratios": [None, *resolution.ASPECT_RATIOS],
}
_TEXTS, _START = ("prompt", "negative_prompt"), ("task", "strength")  # widgets of the page itself
_TITLES = {"num_cols": "images", "sample_step": "steps", "guidance_scale": "guidance"}


def key(name: str) -> str:
    """Return what the widget of an option is called in the session's state."""
    return f"option {name}"


def kept(name: str, default: Any) -> str:
    """Return the key of a widget that begins with `default`, and whose value `keep` keeps."""
    st.session_state.setdefault(key(name), default)
    return key(name)


def first(defaults: SamplingConfig) -> dict[str, Any]:
    """Show the options of drawing that everybody uses; return their values."""
    return _in_columns(SamplingConfig, FIRST, defaults, len(FIRST))


def more(defaults: SamplingConfig) -> dict[str, Any]:
    """Show the others, but for those the page sets; return their values."""
    values: dict[str, Any] = {}
    with st.expander("More options"):
        for tab, names in zip(st.tabs(list(GROUPS)), GROUPS.values(), strict=True):
            with tab:
                values |= _in_columns(SamplingConfig, names, defaults, 3)
    return values


def run(defaults: RunConfig) -> dict[str, Any]:
    """Show the options of a run; return their values."""
    return {name: widget(RunConfig, name, getattr(defaults, name)) for name in RUN}


def widget(section: type, name: str, default: Any) -> Any:
    """Show the option `name` of a `section` and return its value; its documentation is a click away."""
    field = next(f for f in dataclasses.fields(section) if f.name == name)
    kind, _ = schema.option_type(section, name)
    choices = list(_CHOICES.get(name) or field.metadata["choices"])
    is_text = not choices and kind not in (bool, int, float)
    shared = {"label": _TITLES.get(name, name.replace("_", " ")), "help": field.metadata["doc"]}
    shared["key"] = kept(name, default or "" if is_text else default)
    if choices:
        return st.selectbox(options=choices, format_func=lambda value: _called(name, value), **shared)
    if kind is bool:
        return st.checkbox(**shared)
    if is_text:
        return (st.text_input(**shared) or "").strip() or None
    limits = {side: field.metadata[limit] for side, limit in _LIMITS if field.metadata[limit] is not None}
    step = field.metadata["step"] if kind is int else 0.1
    return st.number_input(step=kind(step), **{side: kind(value) for side, value in limits.items()}, **shared)


_LIMITS = (("min_value", "minimum"), ("max_value", "maximum"))


def keep() -> None:
    """Keep what is typed while another page is shown: Streamlit forgets widgets that are not."""
    for name in list(st.session_state):
        if str(name).startswith("option ") or name in (*_TEXTS, *_START):
            st.session_state[name] = st.session_state[name]


def fill(recipe: dict[str, Any]) -> None:
    """Set the widgets to what a recipe says; to be called before they are shown."""
    resolve = {"sampler": samplers.resolve_name, "schedule": schedule.resolve_name, "guider": guidance.resolve_name}
    for name in (*RUN, *FIRST, *(name for names in GROUPS.values() for name in names)):
        if name in recipe:
            st.session_state[key(name)] = resolve[name](recipe[name]) if name in resolve else recipe[name]
    for name in _TEXTS:
        st.session_state[name] = recipe.get(name, "")
    for name in _START:
        if name in recipe:
            st.session_state[name] = recipe[name]
    st.session_state["files of recipe"] = recipe.get("textual_inversion_weight", [])
    st.session_state["sent before"] = {"img": recipe.get("img", []), "mask": recipe.get("mask")}
    st.session_state[key("num_cols")] = st.session_state[key("num_rows")] = 1


def _in_columns(section: type, names: Sequence[str], defaults: Any, count: int) -> dict[str, Any]:
    columns = st.columns(count)
    values: dict[str, Any] = {}
    for number, name in enumerate(names):
        with columns[number % count]:
            values[name] = widget(section, name, getattr(defaults, name))
    return values


def _called(name: str, value: Any) -> str:
    if name == "sampler":
        return samplers.TITLES[value]
    if name == "sd_xl_base_ratios" and value:
        return "{} · {}×{}".format(value, *resolution.ASPECT_RATIOS[value])
    return "default" if value in (None, "") else str(value)
