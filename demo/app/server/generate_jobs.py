"""Image generation as tasks of the worker, with one loaded model."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.app.server import limits, worker
from demo.app.server.worker import NOBODY, Owner, Task
from gm import api
from gm.api import Toolkit
from gm.config import Config
from gm.errors import UserError
from gm.sampling import request, run
from gm.sampling.pipeline import SamplingProgress
from gm.sampling.request import SamplingJob

_loaded: list[tuple[object, Toolkit]] = []  # at most one, after its configs; used in the worker's thread only


@dataclass(frozen=True)
class TaskProgress(SamplingProgress):
    """Progress of a task of one or several jobs; `done` and `total` count the steps of all of their grids.

    image: number of the image, from 1, that the step was of, the first of a batch; of `num_images`
    time: of the step, monotonic, in seconds
    """

    image: int = 1
    num_images: int = 1
    time: float = 0.0


def generate(config: Config, owner: Owner = NOBODY) -> Task:
    """Submit the images that `config` describes; its prompt is never interpreted as a file name.

    The events are `TaskProgress`, for progress and previews, and the path of every image and grid as it is written.
    `Task.skip` leaves the image in progress, or its batch, unfinished. Raises UserError at once for errors that can be
    detected before the weights are read, as `limits.check_sampling` does, and if too many tasks are waiting.
    """
    limits.check_sampling(config.sampling)
    return _submit(config.sampling.prompt, [request.prepare(config, literal=True)], owner)


def compare(configs: Sequence[Config], title: str, owner: Owner = NOBODY) -> Task:
    """Submit the images of several configs, one after the other; events and errors as of `generate`.

    Those of one model are generated together, so that each model is loaded once. UserError, too, if they are more
    images than one request may ask for.
    """
    for each in configs:
        limits.check_sampling(each.sampling)
    count = sum(limits.number_of_images(each.sampling) for each in configs)
    if count > limits.MAX_IMAGES:
        raise UserError(f"these would be {count} images; compare at most {limits.MAX_IMAGES} at once")
    models: list[object] = []
    for each in configs:
        if _model_key(each) not in models:
            models.append(_model_key(each))
    configs = sorted(configs, key=lambda each: models.index(_model_key(each)))
    return _submit(title, [request.prepare(each, literal=True) for each in configs], owner)


def seconds_left(steps: Sequence[TaskProgress]) -> float | None:
    """Return the time that the remaining steps take at the mean speed so far; None before two steps.

    The first step, which compiles, is not counted, and neither are steps that were skipped.
    """
    times = [step.time for step in steps if not step.skipped]
    if len(times) < 2:
        return None
    seconds = (times[-1] - times[0]) / (len(times) - 1)
    return seconds * (steps[-1].total - steps[-1].done)


def _submit(title: str, jobs: Sequence[SamplingJob], owner: Owner) -> Task:
    skip = threading.Event()
    return worker.shared().submit(title, lambda: _sample(jobs, skip), owner, skip)


def _sample(jobs: Sequence[SamplingJob], skip: threading.Event) -> Iterator[TaskProgress | Path]:
    """Run `jobs` and yield their events, with `done` and `total` counted over all of their grids."""
    grids = sum(len(job.grids) for job in jobs)
    num_images = sum(len(grid.requests) for job in jobs for grid in job.grids)
    finished = 0  # images, skipped ones among them
    steps_before = 0  # of the finished grids
    grid_steps = 0  # of the current grid
    for job in jobs:
        for event in run.run_job(_load_toolkit(job.config).pipeline, job, skip.is_set):
            if isinstance(event, Path):
                yield event
                continue
            if event.done == 1:
                steps_before += grid_steps
                grid_steps = event.total
            if event.skipped or event.images:  # a request to skip an image that is finished meanwhile is void
                skip.clear()
            yield TaskProgress(
                done=steps_before + event.done,
                total=max(grids * event.total, steps_before + event.total),
                # Without arrays: the images are on disk, and a task's events live as long as the browser session.
                previews=event.previews,
                skipped=event.skipped,
                image=finished + 1,
                num_images=num_images,
                time=time.monotonic(),
            )
            finished += len(event.images) + event.skipped


def _model_key(config: Config) -> tuple[object, object]:
    return config.model, config.run


def _load_toolkit(config: Config) -> Toolkit:
    """Return the toolkit for `config`; another one is released first, since memory may not hold both."""
    key = _model_key(config)
    if not _loaded or _loaded[0][0] != key:
        _loaded.clear()
        gc.collect()  # parts of a model refer to each other
        _loaded.append((key, api.load(config)))
    return _loaded[0][1]
