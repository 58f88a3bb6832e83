"""The folder of a run: held by one run at a time, and nothing in it is ever lost."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from gm import config as configuration
from gm.errors import UserError
from gm.runtime import atomic_io
from gm.training import checkpoint
from gm.training.setup import TrainingSetup

log = logging.getLogger("gm")

LOG, CONFIG, PREVIEWS, CURVES = "log.jsonl", "config.yaml", "previews", "tensorboard"
REPORT = "report.html"
_RESULTS = ("*_ti.ckpt", "*_ti.safetensors", checkpoint.PATTERN, LOG, CONFIG, PREVIEWS, CURVES, REPORT)
_LOCK = ".lock"


@contextlib.contextmanager
def opened(plan: TrainingSetup) -> Iterator[Path]:
    """Make `save_path`, hold it while the block runs, and make it ready for `plan`.

    What an earlier run left there is moved aside, unless the plan goes on from it: then what it wrote after its state
    is written again. UserError if another run holds the folder, or it cannot be written to.
    """
    folder = Path(plan.config.training.save_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)  # the system releases it when the process ends, however it ends
        lock.acquire(timeout=0)
        atomic_io.clean_leftovers(folder)
        _prepare(folder, plan)
        with atomic_io.atomic_write(folder / CONFIG) as temporary:
            configuration.save(plan.config, temporary)
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


def _prepare(folder: Path, plan: TrainingSetup) -> None:
    resumed = plan.resumed
    if resumed is None or resumed.path is None or resumed.path.parent.resolve() != folder.resolve():
        _move_aside([path for pattern in _RESULTS for path in folder.glob(pattern)], folder)
        return
    numbered = (*_RESULTS, f"{PREVIEWS}/*.png")
    later = [path for pattern in numbered for path in folder.glob(pattern) if _step(path) > resumed.step]
    if plan.changed or any(path.match(checkpoint.PATTERN) for path in later):
        _move_aside(later, folder)  # another way on from here than was taken before
    _cut(folder / LOG, resumed.step)


def _move_aside(paths: list[Path], folder: Path) -> None:
    if not paths:
        return
    taken = {path.name for path in folder.glob("earlier_*")}
    aside = next(folder / name for k in itertools.count(1) if (name := f"earlier_{k}") not in taken)
    for path in sorted(paths):
        place = aside / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    log.info("moved what an earlier run wrote to %s", aside)


def _step(path: Path) -> int:
    """Return the step that a result's name holds, -1 if none: `SD-XL-base-1.0_3000_ti.ckpt`, `state_50.ckpt`."""
    numbers = [part for part in path.stem.removesuffix("_ti").split("_")[-1:] if part.isdigit()]
    return int(numbers[0]) if numbers else -1


def _cut(path: Path, step: int) -> None:
    """Keep the records of a log up to `step`; those after it are written again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # a line that was being written when the process was killed
            if json.loads(line).get("step", 0) <= step:
                kept.append(line + "\n")
    with atomic_io.atomic_write(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
