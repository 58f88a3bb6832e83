"""Axes of the page Compare: the options that the images of a grid may differ in, and what each cell generates."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st

from demo.app.labels import LABELS
from demo.app.options import persistent_key
from demo.app.server import comparison, limits, training_jobs, training_progress
from demo.app.server.training_jobs import TrainingJob
from demo.app.sidebar import ModelSelection
from gm import config as configuration
from gm.checkpoints import config_choice
from gm.config import Config, SamplingConfig
from gm.config.model import ModelConfig
from gm.diffusion import samplers, schedule
from gm.errors import UserError

NONE = "None"
EMBEDDING, STEP, STRENGTH = "Embedding", "Training step", "Embedding strength"
CHECKPOINT = "Checkpoint"
DENOISING = "Denoising strength"  # of img2img
WITHOUT = "no embedding"  # among the values of EMBEDDING
_MAX_STEPS = 6  # of a run that are chosen at first
_NUMBERS = {
    "guidance_scale": (float, "3, 5, 7.5"),
    "sample_step": (int, "10, 20, 40"),
    "seed": (int, "42-45"),
    "strength": (float, "0.4-0.8 (+0.2)"),
    "guidance_rescale": (float, "0, 0.35, 0.7"),
}
_IMPLIED = {"guidance_rescale": {"guider": "rescaled"}}  # options without which another has no effect
_CHOICES = {"sampler": list(samplers.SAMPLERS), "schedule": list(schedule.SCHEDULES)}
OPTION_OF = {{**LABELS, "strength": DENOISING}[name]: name for name in (*_NUMBERS, *_CHOICES)}
AXES = (*OPTION_OF, EMBEDDING, STEP, STRENGTH, CHECKPOINT)


@dataclass(frozen=True)
class Source:
    """What the axes choose from: the prompt, its placeholder token ("" for none) and the words in place of it.

    files: embedding file of each selected placeholder token; run: whose steps are compared; checkpoints: by label
    """

    prompt: str
    token: str = ""
    baseline: str = ""
    files: dict[str, Path] = field(default_factory=dict)
    run: TrainingJob | None = None
    checkpoints: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """What one cell of the grid generates: the placeholder token and its file, its strength, and sampling options.

    weight: the checkpoint, "" for the one that is selected
    """

    token: str
    path: Path | None
    strength: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    weight: str = ""

    def prompt(self, source: Source) -> str:
        """Return the prompt, in which `{}` and the source's token stand for the cell's."""
        text = source.prompt.replace(source.token, "{}") if source.token else source.prompt
        words = self.token or source.baseline
        if self.token and self.strength != 1:
            words = f"({words}:{self.strength:g})"
        return text.replace("{}", words)


@dataclass(frozen=True)
class Axis:
    """One axis: values with their labels, and how a value changes a cell."""

    name: str
    values: list[Any]
    labels: list[str]
    apply: Callable[[Cell, Any], Cell]


NO_AXIS = Axis(NONE, [None], [""], lambda cell, _: cell)


def choose(letter: str, default: str, source: Source, names: Sequence[str] = AXES) -> Axis:
    """Show the widgets of an axis; return it. UserError for values that cannot be used."""
    choices = [NONE, *names]
    left, right = st.columns([1, 2])
    key = persistent_key(f"{letter} axis", default, choices.__contains__)
    name = left.selectbox(f"{letter} axis", choices, key=key)
    with right:
        return NO_AXIS if name == NONE else values_of(name, letter, source)


def values_of(name: str, letter: str, source: Source) -> Axis:
    """Show the values of an axis, "" for one without a letter, and return it; UserError as of `choose`."""
    label = f"{letter} values" if letter else name
    if name == STEP:
        return _steps(label, letter, source)
    if name == EMBEDDING:
        chosen = _multiselect(label, f"{letter} {name}", [WITHOUT, *source.files], [WITHOUT, *source.files][:4])
        return Axis(name, chosen, chosen, lambda cell, token: _with_token(cell, token, source))
    if name == STRENGTH:
        strengths = _numbers(label, f"{letter} {name}", "0.6-1.4 (+0.4)", float, 0.0, 3.0)
        return Axis(name, strengths, [f"strength {s:g}" for s in strengths], _with_strength)
    if name == CHECKPOINT:
        names = list(source.checkpoints)
        chosen = _multiselect(label, f"{letter} {name}", names, names[:1])
        return Axis(name, chosen, chosen, lambda cell, each: _with_weight(cell, source.checkpoints[each]))
    option = OPTION_OF[name]
    if option in _CHOICES:
        chosen = _multiselect(label, f"{letter} {name}", _CHOICES[option], _CHOICES[option][:3])
        labels = [samplers.TITLES.get(each, each) if option == "sampler" else each for each in chosen]
        return Axis(name, chosen, labels, lambda cell, value: _with_option(cell, option, value))
    kind, example = _NUMBERS[option]
    metadata = next(f for f in dataclasses.fields(SamplingConfig) if f.name == option).metadata
    high = min(metadata["maximum"], limits.MAXIMA.get(option, math.inf))
    numbers = _numbers(label, f"{letter} {name}", example, kind, metadata["minimum"], high)
    return Axis(name, numbers, [f"{name} {n:g}" if kind is float else f"{name} {n}" for n in numbers],
                lambda cell, value: _with_option(cell, option, value))  # fmt: skip


def cells(x: Axis, y: Axis, source: Source) -> list[Cell]:
    """Return the cells row by row; UserError if the axes or the prompt exclude each other."""
    if x.name == y.name != NONE:
        raise UserError(f"both axes are {x.name}; choose two different ones")
    if {x.name, y.name} == {EMBEDDING, STEP}:
        raise UserError(f"{EMBEDDING} and {STEP} both choose the embedding file; choose another axis in place of one")
    needs_token = {x.name, y.name} & {EMBEDDING, STEP, STRENGTH}
    if needs_token and "{}" not in source.prompt and not (source.token and source.token in source.prompt):
        token = f" nor {source.token}" if source.token else ""
        raise UserError(f"the prompt holds neither {{}}{token}; add one where the placeholder token goes")
    if STRENGTH in needs_token and not source.token and EMBEDDING not in needs_token:
        raise UserError("no embedding is selected; select one in the sidebar")
    start = Cell(source.token, source.files.get(source.token))
    return [x.apply(y.apply(start, row), column) for row in y.values for column in x.values]


def config_of(cell: Cell, source: Source, selection: ModelSelection, sampling: dict[str, Any]) -> Config:
    """Return the config of a cell: the page's `sampling` options, those of the cell, and its embedding file.

    Of the selected files those with the same placeholder token are left out. UserError for a checkpoint that is not of
    the selected one's family.
    """
    config = selection.sampling_config(**{**sampling, **cell.options, "prompt": cell.prompt(source)})
    if cell.weight:
        run = dataclasses.replace(config.run, weight=cell.weight)
        config = dataclasses.replace(config, model=_model_of(cell.weight, selection), run=run)
    weights = [
        str(path)
        for path, loaded in selection.embeddings.items()
        if path != cell.path and all(each.placeholder_token != cell.token for each in loaded)
    ]
    weights += [str(cell.path)] if cell.path else []
    return dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, textual_inversion_weight=weights))


def _model_of(weight: str, selection: ModelSelection) -> ModelConfig:
    """Return the config of the model at `weight`; UserError if it is of another family than the selected one."""
    default = [selection.config_path] if selection.config_path else []
    path, sections = config_choice.config_for(weight, *default)
    model, selected = _load_model(path, json.dumps(sections)), selection.config.model
    if model.family != selected.family:
        raise UserError(
            f"{Path(weight).name} is of the family {model.family}, not {selected.family}; take it off the axis"
        )
    # As in the sidebar, the selected config stays where the weights do not contradict it.
    return selected if (model.schedule, model.kind) == (selected.schedule, selected.kind) else model


@functools.lru_cache(maxsize=32)
def _load_model(path: str, sections: str) -> ModelConfig:
    return configuration.load(path, json.loads(sections)).model


def _with_weight(cell: Cell, weight: str) -> Cell:
    return dataclasses.replace(cell, weight=weight)


def _with_option(cell: Cell, option: str, value: Any) -> Cell:
    return dataclasses.replace(cell, options={**cell.options, **_IMPLIED.get(option, {}), option: value})


def _with_strength(cell: Cell, strength: float) -> Cell:
    return dataclasses.replace(cell, strength=strength)


def _with_token(cell: Cell, token: str, source: Source) -> Cell:
    if token == WITHOUT:
        return dataclasses.replace(cell, token="", path=None)
    return dataclasses.replace(cell, token=token, path=source.files[token])


def _steps(label: str, letter: str, source: Source) -> Axis:
    """Show the steps of the source's run whose embedding files are there."""
    if source.run is None:
        raise UserError("there is no training run with embedding files yet; train one on the page Train")
    files = {training_jobs.file_step(path): path for path in source.run.embedding_files()}
    ordered = sorted((step for step in files if step.isdigit()), key=int) + [step for step in files if step == "best"]
    chosen = _multiselect(
        label,
        f"{letter or 'compared'} steps of {source.run.name}",
        ordered,
        training_progress.thin_out(ordered, _MAX_STEPS),
    )
    token = source.run.launch.placeholder_token

    def apply(cell: Cell, step: str) -> Cell:
        return dataclasses.replace(cell, token=token, path=files[step])

    return Axis(STEP, chosen, [f"step {step}" if step.isdigit() else step for step in chosen], apply)


def _multiselect(label: str, key: str, choices: Sequence[str], default: list[str]) -> list[str]:
    def accepts(value: Any) -> bool:
        return isinstance(value, list) and all(each in choices for each in value)

    chosen = st.multiselect(label, choices, key=persistent_key(f"{key} values", default, accepts))
    if not chosen:
        raise UserError(f"{label} are empty; choose at least one")
    return list(chosen)


def _numbers(label: str, key: str, example: str, kind: type, low: float, high: float) -> list[Any]:
    text = st.text_input(
        label, key=persistent_key(f"{key} values", example), help="3, 5, 7 or a range: 1-5, 1-9 (+2), 1-9 [4]"
    )
    return comparison.parse_numbers(text, kind, low, high)
