"""Output folder of a run: locked by one run at a time; files of an earlier run are moved, never overwritten."""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from gm import config as configuration
from gm.errors import UserError
from gm.runtime import atomic_io
from gm.training import checkpoint, full_pipeline, learned_embeds
from gm.training.setup import TrainingSetup

log = logging.getLogger("gm")

LOG = "log.jsonl"
CONFIG = "config.yaml"
PREVIEWS = "previews"
TENSORBOARD = "tensorboard"
REPORT = "report.html"
PUBLISHED = "published"
_DIFFUSERS = (*learned_embeds.PATTERNS, f"{checkpoint.SUBFOLDER}[0-9]*")
_RESULTS = ("*_ti.ckpt", "*_ti.safetensors", checkpoint.PATTERN, LOG, CONFIG, PREVIEWS, TENSORBOARD, REPORT, PUBLISHED)
_LOCK = ".lock"


@contextlib.contextmanager
def acquire(setup: TrainingSetup) -> Iterator[Path]:
    """Create `save_path`, lock it while the block runs, and prepare it for the run.

    Files of an earlier run are moved to a subfolder. A resumed run keeps its files up to its checkpoint. UserError if
    another run has the lock, or the folder is not writable.
    """
    folder = Path(setup.config.training.save_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)  # released by the system when the process ends, even if killed
        lock.acquire(timeout=0)
        atomic_io.clean_leftovers(folder)
        _prepare(folder, setup)
        with atomic_io.atomic_write(folder / CONFIG) as temporary:
            configuration.save(setup.config, temporary)
    except Timeout as error:
        raise UserError(
            f"another run is writing to --save_path {folder}; wait until it ends, or choose another folder"
        ) from error
    except OSError as error:
        raise UserError(f"cannot write to --save_path {folder}: {error.strerror}; choose another folder") from error
    try:
        yield folder
    finally:
        lock.release()


def _prepare(folder: Path, setup: TrainingSetup) -> None:
    resume_from = setup.resume_from
    name = setup.config.training.output_name
    results = (*_RESULTS, *_DIFFUSERS, *([glob.escape(name)] if name else []))
    if resume_from is None or resume_from.run_folder is None or resume_from.run_folder.resolve() != folder.resolve():
        earlier = {path for pattern in results for path in folder.glob(pattern)}
        if (folder / CONFIG).exists() or setup.config.training.save_as_full_pipeline:
            earlier |= {folder / each for each in full_pipeline.files(setup.config, folder)}
        _move_aside(list(earlier), folder)
        return
    patterns = (*_RESULTS, f"{PREVIEWS}/*.png")
    later = [path for pattern in patterns for path in folder.glob(pattern) if _step(path) > resume_from.step]
    later += [path for pattern in _DIFFUSERS for path in folder.glob(pattern) if _updates(path) > resume_from.updates]
    if setup.changed_options or any(path.match(checkpoint.PATTERN) for path in later):
        later += [folder / each for each in full_pipeline.files(setup.config, folder)]
        _move_aside(later, folder)  # another continuation than before
    _truncate_log(folder / LOG, resume_from.step)


def _move_aside(paths: list[Path], folder: Path) -> None:
    if not paths:
        return
    existing = {path.name for path in folder.glob("earlier_*")}
    subfolder = next(folder / name for k in itertools.count(1) if (name := f"earlier_{k}") not in existing)
    for path in sorted(paths):
        target = subfolder / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    log.info("moved the files of an earlier run to %s", subfolder)


def _step(path: Path) -> int:
    """Return the step in a file name, -1 if there is none: `SD-XL-base-1.0_3000_ti.ckpt`, `state_50.ckpt`."""
    numbers = [part for part in path.stem.removesuffix("_ti").split("_")[-1:] if part.isdigit()]
    return int(numbers[0]) if numbers else -1


def _updates(path: Path) -> int:
    """Return the updates in a file name of diffusers' script: `learned_embeds-steps-500.bin`, `checkpoint-500`."""
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _truncate_log(path: Path, step: int) -> None:
    """Keep the records up to `step`; the later ones are written again."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # an incomplete line of a killed process
            if json.loads(line).get("step", 0) <= step:
                lines.append(line + "\n")
    with atomic_io.atomic_write(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
