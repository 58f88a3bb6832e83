"""The options that are always visible on the page Generate, as AUTOMATIC1111 arranges them."""

from __future__ import annotations

import math
import secrets
from typing import Any

import streamlit as st

from demo.app import options
from demo.app.options import RANDOM_SEED, widget_key
from gm.config import SamplingConfig
from gm.config.model import ModelConfig
from gm.errors import UserError
from gm.sampling import resolution

LAST_SEED_KEY = "last seed"  # of the seed that was used last, in the session state
_MAX_SEED = 2**32  # of those that are chosen at random
_SIDES = (1, 1.25, 1.5)  # of the presets: the longer side, in terms of the model's resolution
_SDXL_RESOLUTION = 1024
_SIDE_STEP = 64  # of the presets


def show(defaults: SamplingConfig, model: ModelConfig, task: str) -> dict[str, Any]:
    """Show the options; return their values."""
    values: dict[str, Any] = {}
    for names in (("sampler", "schedule"), ("sample_step", "guidance_scale")):
        for column, name in zip(st.columns(2), names, strict=True):
            with column:
                values[name] = options.widget(SamplingConfig, name, getattr(defaults, name))
    values |= _size(defaults, model, task)
    for column, name in zip(st.columns(2), ("num_cols", "batch_size"), strict=True):
        with column:
            values[name] = options.widget(SamplingConfig, name, getattr(defaults, name))
    values["seed"] = _seed(defaults)
    return values


def to_sampling(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a request: a seed where it is random, and the rows and columns of all images."""
    count = values["num_cols"] * values["batch_size"]
    # The grid is as near to a square as it goes.
    rows = next(rows for rows in range(math.isqrt(count), 0, -1) if count % rows == 0)
    seed = secrets.randbelow(_MAX_SEED) if values["seed"] == RANDOM_SEED else values["seed"]
    sampling = {**values, "num_cols": count // rows, "num_rows": rows, "batch_size": values["batch_size"], "seed": seed}
    if values["width"] or values["height"]:
        sampling["sd_xl_base_ratios"] = None
    return sampling


def presets(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return width and height by label: those that the model was trained on, or its resolution and wider ones."""
    if model.family == "sdxl" and model.resolution == _SDXL_RESOLUTION:
        sizes = sorted(resolution.ASPECT_RATIOS.items(), key=lambda each: abs(math.log(float(each[0]))))
        return {f"{ratio} · {width}×{height}": (width, height) for ratio, (width, height) in sizes}
    step = min(_SIDE_STEP, model.resolution // 8)
    long_sides = [int(model.resolution * factor) // step * step for factor in _SIDES]
    pairs = [(model.resolution, side) for side in long_sides]
    return {f"{width}×{height}": (width, height) for pair in pairs for width, height in (pair, pair[::-1])}


def _size(defaults: SamplingConfig, model: ModelConfig, task: str) -> dict[str, Any]:
    try:
        size = resolution.from_options(defaults, model)
        default = {"width": size.width, "height": size.height}
    except UserError:  # of the config; it is reported with the request
        default = {"width": model.resolution, "height": model.resolution}
    placeholders = {name: str(side) if task == "txt2img" else "auto" for name, side in default.items()}
    columns = st.columns([4, 2, 4, 4], gap="small", vertical_alignment="bottom")
    values: dict[str, Any] = {}
    for column, name in zip(columns[::2], ("width", "height"), strict=True):
        with column:
            values[name] = options.widget(
                SamplingConfig, name, getattr(defaults, name), model.vae.downsample_factor, placeholders[name]
            )
    columns[1].button(
        ":material/swap_horiz:", key="swap size", help="Swap width and height", on_click=_swap, args=(default,)
    )
    sizes = presets(model)
    if st.session_state.get("size preset") not in (None, *sizes):
        st.session_state["size preset"] = None
    columns[3].selectbox(
        "Presets", sizes, index=None, key="size preset", placeholder="Size", on_change=_apply_preset, args=(sizes,)
    )
    return values


def _swap(default: dict[str, int]) -> None:
    width, height = (st.session_state.get(widget_key(name)) or default[name] for name in ("width", "height"))
    _set_size(height, width)


def _apply_preset(sizes: dict[str, tuple[int, int]]) -> None:
    label = st.session_state.get("size preset")
    if label in sizes:
        _set_size(*sizes[label])
    st.session_state["size preset"] = None  # a menu, not a value: the boxes have that


def _set_size(width: int, height: int) -> None:
    st.session_state[widget_key("width")], st.session_state[widget_key("height")] = width, height


def _seed(defaults: SamplingConfig) -> int:
    columns = st.columns([6, 1, 1], vertical_alignment="bottom")
    with columns[0]:
        seed: int = options.widget(SamplingConfig, "seed", defaults.seed)
    columns[1].button(
        ":material/casino:",
        key="random seed",
        help="Another seed each time: -1",
        on_click=_set_seed,
        args=(RANDOM_SEED,),
    )
    last = st.session_state.get(LAST_SEED_KEY)
    columns[2].button(
        ":material/recycling:",
        key="last seed button",
        help="The seed that was used last",
        on_click=_set_seed,
        args=(last,),
        disabled=last is None,
    )
    return seed


def _set_seed(seed: int) -> None:
    st.session_state[widget_key("seed")] = seed
