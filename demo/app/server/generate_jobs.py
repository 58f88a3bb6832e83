"""Drawing as tasks of the worker, with a model that is loaded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from demo.app.server import worker
from demo.app.server.worker import Task
from gm import api
from gm.api import Toolkit
from gm.config import Config
from gm.sampling import request, run
from gm.sampling.pipeline import SamplingProgress
from gm.sampling.request import SamplingJob

_loaded: list[tuple[object, Toolkit]] = []  # one at most, with what it was loaded for; the worker's thread alone has it


def draw(config: Config) -> Task:
    """Let what `config` asks for be drawn; its prompt is never taken for the name of a file.

    The events are `SamplingProgress`, for progress and previews, and the path of every image and grid as it is written.
    Raises UserError at once for what can be known before the weights are read.
    """
    made = request.prepare(config, literal=True)
    return worker.shared().submit(config.sampling.prompt, lambda: _drawn([made]))


def compare(config: Config, plain: str) -> Task:
    """Let the prompt `plain` be drawn, then that of `config`, from the same seeds; events and errors as of `draw`."""
    before = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, prompt=plain))
    jobs = [request.prepare(one, literal=True) for one in (before, config)]
    return worker.shared().submit(f"{plain} → {config.sampling.prompt}", lambda: _drawn(jobs))


def _drawn(jobs: Sequence[SamplingJob]) -> Iterator[SamplingProgress | Path]:
    toolkit = _toolkit(jobs[0].config)
    sheets = sum(len(made.grids) for made in jobs)
    before, length = 0, 0  # steps of the sheets that are done, and of the one that is being drawn
    for made in jobs:
        for event in run.run_job(toolkit.pipeline, made):
            if isinstance(event, Path):
                yield event
                continue
            if event.done == 1:
                before, length = before + length, event.total
            # The images are on the disk, and tasks are kept for as long as a page is open.
            total = max(sheets * event.total, before + event.total)
            yield dataclasses.replace(event, done=before + event.done, total=total, images=(), latents=None)


def _toolkit(config: Config) -> Toolkit:
    """Return the model that `config` names; the one before is given up first, since both might not fit."""
    wanted = config.model, config.run
    if not _loaded or _loaded[0][0] != wanted:
        _loaded.clear()
        _loaded.append((wanted, api.load(config)))
    return _loaded[0][1]
