"""A whole training run: from the plan to learned files, states, logs and previews in `save_path`."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import mindspore as ms
import numpy as np

from gm.data import latent_cache
from gm.embeddings import init
from gm.errors import UserError
from gm.models import sdxl
from gm.models.sdxl import SDXL
from gm.runtime.backend import Backend
from gm.training import diagnosis, loop, output_dir
from gm.training.batches import Feed
from gm.training.callbacks import Desk, file_name
from gm.training.loop import ASKED, DIVERGED
from gm.training.setup import Plan
from gm.training.signals import SIGNALS, Stop
from gm.training.train_step import Learned

log = logging.getLogger("gm")


def prepare(model: SDXL, plan: Plan, backend: Backend) -> tuple[Learned, Feed]:
    """Encode the pictures and fill in the initial rows, or those of the state to go on from."""
    config = plan.config
    encoded = latent_cache.encode(
        model.first_stage_model,
        plan.pictures,
        config.data.flip,
        config.model.autoencoder.scale_factor,
        config.data.unmasked_weight,
    )
    rows = [_initial_rows(table, plan, encoder) for encoder, table in enumerate(model.token_tables())]
    learned = Learned(rows, backend.dtype == ms.float16, config.training.optimizer)
    if plan.resumed:
        learned.restore(plan.resumed.tensors)
    return learned, Feed(plan, encoded, backend.rank, backend.world)


def run(model: SDXL, plan: Plan, backend: Backend) -> list[Path]:
    """Train, writing what the config asks for; return the path of each word's last learned file.

    Only the first rank writes. A signal ends it after a step, all saved, as SystemExit with 128 plus its number. Raises
    UserError if `save_path` cannot be written to or another run writes there, if the state to go on from is of other
    weights, and if steps in a row are not finite.
    """
    training, resumed = plan.config.training, plan.resumed
    base_model = sdxl.fingerprint(model)
    _check_resumed(plan, base_model, backend)
    if resumed and resumed.step == training.total_step:
        log.info("all %d steps are done already; --total_step asks for more", resumed.step)
        return _last(plan, resumed.step)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(output_dir.opened(plan)) if backend.leads else None
        learned, feed = prepare(model, plan, backend)
        if not training.infer_during_train:
            model.release_autoencoder()
        stop = stack.enter_context(Stop())
        desk = Desk(model, learned, feed, plan, backend, base_model, place) if place else None
        if desk:
            stack.callback(desk.close)
        start = (resumed.step, resumed.updates) if resumed else (0, 0)
        asked = lambda: stop.asked is not None  # noqa: E731
        for report in loop.run(model, learned, feed, plan.config, plan.updates, backend, start, asked):
            stop.ready = True
            if desk:
                desk.take(report)
        backend.gather()
    last = _last(plan, report.step)
    if report.ended == DIVERGED:
        cause = diagnosis.cause(model, learned, feed, report, backend)
        raise UserError(
            f"step {report.step} is the {training.max_skipped_steps}th in a row {cause}; what was learned "
            f"before is in {', '.join(map(str, last))}"
        )
    if report.ended == ASKED:
        log.info("stopped after step %d of %d; --resume latest goes on", report.step, training.total_step)
        raise SystemExit(128 + (stop.asked or SIGNALS[0]))
    return last


def _check_resumed(plan: Plan, base_model: str, backend: Backend) -> None:
    """Raise UserError if the state to go on from was made on other weights, or is not that of the other ranks."""
    resumed = plan.resumed
    if resumed and resumed.base_model != base_model:
        raise UserError(
            f"--resume: {resumed.path} was made on other weights than {plan.config.run.weight}; give --weight those"
        )
    step = float(resumed.step) if resumed else -1.0
    if backend.means([step])[0] != step:
        raise UserError("--resume: the ranks found different states; --save_path must be one folder for all of them")


def _last(plan: Plan, step: int) -> list[Path]:
    return [Path(plan.config.training.save_path) / file_name(plan, lesson, step) for lesson in plan.lessons]


def _initial_rows(table: np.ndarray, plan: Plan, encoder: int) -> np.ndarray:
    """Return what the rows of all words in the encoder, 0 or 1, are at first, float32 [rows, width]."""
    rows = []
    for number, lesson in enumerate(plan.lessons):
        vectors = lesson.entry.num_vectors
        if lesson.start is not None:
            own = lesson.start[encoder]
            rows.append(init.from_words(own, list(range(len(own))), vectors))
        elif lesson.ids is not None:
            rows.append(init.from_words(table, lesson.ids, vectors))
        else:
            rows.append(init.random(table, vectors, plan.config.training.seed, encoder + 1, number))
    return np.concatenate(rows)
