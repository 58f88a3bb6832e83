"""Checkpoints of training runs, `state_<step>.ckpt`: everything that the next step depends on.

Images, prompts and noise are functions of the step (`gm.runtime.rng`), so a checkpoint holds the parameters of
`TrainState` and a few counters: some kilobytes. A resumed run continues bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gm.checkpoints import containers
from gm.checkpoints.lazy_tensor import in_memory
from gm.config import Config
from gm.errors import UserError
from gm.lora import files as lora_files
from gm.lora.files import LoraRecord

log = logging.getLogger("gm")

PATTERN = "state_*.ckpt"
SUBFOLDER = "checkpoint-"  # of a checkpoint in the layout of diffusers' script; its number of updates follows
LATEST = "latest"
# Options that cannot change in a run, and why.
_FIXED_OPTIONS = {
    r"model\.": "the vectors belong to that model",
    r"run\.pooling": "the vectors were trained with that rule",
    r"concepts?\.(\d+\.)?placeholder_token": "the token is what is being trained",
    r"concepts?\.(\d+\.)?num_vectors": "the vectors exist already",
    r"training\.optimizer": "the optimizer state is that of the other",
    r"training\.token_scale": "the vectors have their norm already",
    r"concepts?\.(\d+\.)?initializer_(token|file|names_file)": "the vectors are initialized already",
    r"concepts?\.(\d+\.)?cross_initialization": "the vectors are initialized already",
    r"concepts?\.(\d+\.)?negative": "the vectors were trained without that rule",
}


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` steps and `updates` updates, skipped ones included.

    tensors: parameters of `TrainState` by name; base_model: fingerprint of the frozen weights; options: the config as
    nested values; data_fingerprint: hash of the training data; metrics: running loss and skipped steps;
    callbacks: state of each callback by its class name; loras: name, strength and hash of each LoRA in the weights,
    whose norms, and so the fingerprint, no LoRA changes
    """

    step: int
    updates: int
    tensors: dict[str, np.ndarray]
    base_model: str
    options: dict[str, Any]
    data_fingerprint: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    loras: list[dict[str, Any]] = field(default_factory=list)
    path: Path | None = None  # of the file it was read from

    @property
    def run_folder(self) -> Path | None:
        """The output folder of its run, None if it was not read from a file."""
        if self.path is None:
            return None
        folder = self.path.parent
        return folder.parent if folder.name.startswith(SUBFOLDER) else folder


_METADATA = [each.name for each in dataclasses.fields(Checkpoint) if each.name not in ("tensors", "path")]


def save(state: Checkpoint, folder: Path, keep: int) -> Path:
    """Write `state` into `folder` atomically; return its path.

    Then removes all but the newest `keep` checkpoints up to its step; 0 keeps all.
    """
    metadata = {name: getattr(state, name) for name in _METADATA}
    path = folder / f"state_{state.step}.ckpt"
    tensors = {name: in_memory(np.atleast_1d(value)) for name, value in state.tensors.items()}
    containers.write(path, tensors, {"state": json.dumps(metadata)})
    if keep:
        for old in [path for step, path in _checkpoints_in(folder) if step <= state.step][keep:]:
            with contextlib.suppress(OSError):
                old.unlink()
    return path


def save_in_subfolder(state: Checkpoint, folder: Path, keep: int) -> Path:
    """Write `state` as `checkpoint-<updates>/state_<step>.ckpt`, the layout of diffusers' script; return its path.

    Then removes the states in all but the newest `keep` of these folders, and the folders that are empty then.
    """
    subfolder = folder / f"{SUBFOLDER}{state.updates}"
    subfolder.mkdir(exist_ok=True)
    path = save(state, subfolder, 1)
    older = [path for updates, path in _subfolders_in(folder) if updates <= state.updates]
    for old in older[keep:] if keep else ():
        with contextlib.suppress(OSError):
            for file in old.glob(PATTERN):
                file.unlink()
            old.rmdir()
    return path


def load(path: str | Path) -> Checkpoint:
    """Return the checkpoint at `path`; UserError if the file is damaged or not a checkpoint of this version."""
    path = _file_in(Path(path))
    contents = containers.read(path)
    try:
        metadata = json.loads(contents.metadata["state"])
        tensors = {name: np.array(tensor.read(), np.float32) for name, tensor in contents.tensors.items()}
        return Checkpoint(tensors=tensors, path=Path(path), **metadata)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not a training state of this version; training writes {PATTERN} into --save_path"
        ) from error


def _file_in(path: Path) -> Path:
    """Return the newest checkpoint of a folder, or a file itself."""
    if not path.is_dir():
        return path
    checkpoints = _checkpoints_in(path)
    if checkpoints:
        return checkpoints[0][1]
    if (path / "random_states_0.pkl").exists() or (path / "optimizer.bin").exists():
        raise UserError(
            f"{path} is a checkpoint of PyTorch's accelerate, which cannot be continued here; --initializer_file "
            "starts from the learned_embeds file beside it"
        )
    raise UserError(f"{path} is a folder without {PATTERN}; training writes them into --save_path")


def find(resume: str | None, save_path: str | Path) -> Checkpoint | None:
    """Return the checkpoint for the option `--resume`; None without that option and if there is none yet.

    With "latest", a damaged file is skipped for the one before it. UserError for a path that is not a checkpoint.
    """
    if resume is None:
        return None
    if resume != LATEST:
        return load(resume)
    for _, path in _checkpoints_in(Path(save_path)):
        try:
            return load(path)
        except UserError as error:
            log.warning("%s; trying the one before it", error)
    log.info("--resume %s: no training state in %s; starting at step 1", LATEST, save_path)
    return None


def check(state: Checkpoint, config: Config, loras: Sequence[LoraRecord] = ()) -> dict[str, str]:
    """Return the options that `config` changes, as "old → new"; UserError for one that cannot change in a run.

    `loras` are those of this run: others than those of the state are refused.

    A finished run may be resumed with "latest": a command that is started again and again must come to an end.
    """
    old = _flatten(state.options)
    new = _flatten(config_values(config))
    default = _flatten(config_values(Config()))
    for name in new:
        old.setdefault(name, default.get(name))  # an option that is newer than the checkpoint
    changed = {
        name: f"{old.get(name)!r} → {new.get(name)!r}" for name in {**old, **new} if old.get(name) != new.get(name)
    }
    for pattern, reason in _FIXED_OPTIONS.items():
        for name, change in changed.items():
            if re.match(pattern, name):
                raise UserError(f"--resume: {name} was {change}; {reason}: keep the old value, or start a new run")
    before = lora_files.from_json(state.loras)
    if lora_files.differ(before, loras):
        old_loras, new_loras = lora_files.describe(before), lora_files.describe(loras)
        raise UserError(
            f"--resume: the LoRAs were {old_loras} and are {new_loras}; the vectors were trained with the former: give "
            "those to --lora_weight, or start a new run"
        )
    total_step = config.training.total_step
    finished = total_step == state.step and config.training.resume == LATEST
    if total_step <= state.step and not finished:
        raise UserError(
            f"--resume: {state.path} is at step {state.step} of {total_step}; --total_step counts all steps of a run"
        )
    return changed


def config_values(config: Config) -> dict[str, Any]:
    """Return `config` as nested JSON values, without the option `resume` and those of an evaluation.

    The learning rate is the number that the run uses.
    """
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    values["training"]["learning_rate"] = config.training.peak_learning_rate
    del values["training"]["resume"], values["evaluation"]
    return values


def _checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints in `folder` with their steps, newest first."""
    numbered = [(path.stem.removeprefix("state_"), path) for path in folder.glob(PATTERN)]
    return sorted(((int(step), path) for step, path in numbered if step.isdigit()), reverse=True)


def _subfolders_in(folder: Path) -> list[tuple[int, Path]]:
    """Return (updates, path) of the subfolders with checkpoints, the newest first."""
    numbers = [(path.name.removeprefix(SUBFOLDER), path) for path in folder.glob(f"{SUBFOLDER}*") if path.is_dir()]
    return sorted(((int(number), path) for number, path in numbers if number.isdigit()), reverse=True)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(number): item for number, item in enumerate(value, 1)}
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
