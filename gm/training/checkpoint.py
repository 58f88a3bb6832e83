"""A run's state: everything that its next step depends on, so that a stopped run goes on as if it had never stopped.

Images, prompts and noise are functions of a step's number (`gm.runtime.rng`): what training changes
(`train_step.Learned`) and a
few counters are all there is. A state is a `.ckpt` of a few kilobytes, `state_<step>.ckpt`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gm.checkpoints import containers
from gm.checkpoints.lazy_tensor import in_memory
from gm.config import Config
from gm.errors import UserError

log = logging.getLogger("gm")

PATTERN = "state_*.ckpt"
LATEST = "latest"
# What a run cannot change on its way, and why.
_FIXED = {
    r"model\.": "the rows belong to that model",
    r"run\.pooling": "the rows were learned under that rule",
    r"concept\.(.*\.)?placeholder_token": "it is the word being learned",
    r"concept\.(.*\.)?num_vectors": "the rows are there already",
    r"training\.optimizer": "its state is the other's",
    r"concept\.(.*\.)?initializer_(token|file)": "the rows have started already",
    r"concept\..*\.negative": "the rows were learned under the other rule",
}


@dataclass(frozen=True)
class Checkpoint:
    """What there was after `step` steps and `updates` updates, attempted ones included.

    `tensors` are the parameters of `step.Learned` by name; `base_model` is the fingerprint of the frozen weights;
    `config_values` is the config as nested values; `notes` is whatever else was kept that JSON holds.
    """

    step: int
    updates: int
    tensors: dict[str, np.ndarray]
    base_model: str
    options: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None  # where it was read from


def save(state: Checkpoint, folder: Path, keep: int) -> Path:
    """Write `state` into `folder`, whole or not at all; return its path.

    Of those up to its step, all but the newest `keep` are then removed.
    """
    facts = {name: getattr(state, name) for name in ("step", "updates", "base_model", "options", "notes")}
    path = folder / f"state_{state.step}.ckpt"
    tensors = {name: in_memory(np.atleast_1d(value)) for name, value in state.tensors.items()}
    containers.write(path, tensors, {"state": json.dumps(facts)})
    for old in [path for step, path in _in(folder) if step <= state.step][keep:]:
        with contextlib.suppress(OSError):
            old.unlink()
    return path


def load(path: str | Path) -> Checkpoint:
    """Return the state at `path`; UserError if it is none, or damaged."""
    contents = containers.read(path)
    try:
        facts = json.loads(contents.metadata["state"])
        tensors = {name: np.array(tensor.read(), np.float32) for name, tensor in contents.tensors.items()}
        return Checkpoint(tensors=tensors, path=Path(path), **facts)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no state of a run; training writes {PATTERN} into --save_path") from error


def find(resume: str | None, save_path: str | Path) -> Checkpoint | None:
    """Return the state that `--resume` asks for; None if nothing is to be resumed, or there is nothing yet.

    A damaged one among several is passed over for the one before it. UserError for a path that holds no state.
    """
    if resume is None:
        return None
    if resume != LATEST:
        return load(resume)
    for _, path in _in(Path(save_path)):
        try:
            return load(path)
        except UserError as error:
            log.warning("%s; the state before it is tried", error)
    log.info("--resume %s: no state in %s, so the run starts at its beginning", LATEST, save_path)
    return None


def check(state: Checkpoint, config: Config) -> dict[str, str]:
    """Return what `config` changes, by option, as "old → new"; UserError for what a run cannot change.

    A run that is complete may be resumed as `LATEST`, so that whoever starts it again and again comes to an end.
    """
    old, new = _flat(state.options), _flat(config_values(config))
    default = _flat(config_values(Config()))
    for name in new:
        old.setdefault(name, default.get(name))  # the state may be older than the option
    changed = {
        name: f"{old.get(name)!r} → {new.get(name)!r}" for name in {**old, **new} if old.get(name) != new.get(name)
    }
    for pattern, reason in _FIXED.items():
        for name, change in changed.items():
            if re.match(pattern, name):
                raise UserError(f"--resume: {name} was {change}; {reason}: leave it as it was, or start a new run")
    done = config.training.total_step == state.step and config.training.resume == LATEST
    if config.training.total_step <= state.step and not done:
        raise UserError(
            f"--resume: {state.path} is at step {state.step} of {config.training.total_step}; --total_step says how "
            "many steps there are to be in all"
        )
    return changed


def config_values(config: Config) -> dict[str, Any]:
    """Return `config` as nested values that JSON gives back unchanged, without what asks to resume."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    del values["training"]["resume"]
    return values


def _in(folder: Path) -> list[tuple[int, Path]]:
    """Return the states in `folder` with their steps, the newest first."""
    named = [(path.stem.removeprefix("state_"), path) for path in folder.glob(PATTERN)]
    return sorted(((int(step), path) for step, path in named if step.isdigit()), reverse=True)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(number): item for number, item in enumerate(value, 1)}
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat
