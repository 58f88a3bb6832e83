"""A whole training run: from the plan to embedding files, states, logs and previews in `save_path`."""

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
from gm.training.batches import BatchLoader
from gm.training.callbacks import Desk, file_name
from gm.training.loop import ASKED, DIVERGED
from gm.training.setup import TrainingSetup
from gm.training.signals import SIGNALS, StopSignals
from gm.training.train_step import TrainState

log = logging.getLogger("gm")


def prepare(model: SDXL, plan: TrainingSetup, backend: Backend) -> tuple[TrainState, BatchLoader]:
    """Encode the images and fill in the initial rows, or those of the state to go on from."""
    config = plan.config
    encoded = latent_cache.encode_images(
        model.first_stage_model,
        plan.images,
        config.data.random_flip,
        config.model.vae.scale_factor,
        config.data.unmasked_weight,
    )
    rows = [_initial_rows(table, plan, encoder) for encoder, table in enumerate(model.token_tables().values())]
    learned = TrainState(rows, backend.dtype == ms.float16, config.training.optimizer)
    if plan.resumed:
        learned.restore(plan.resumed.tensors)
    return learned, BatchLoader(plan, encoded, backend.rank, backend.world_size)


def run(model: SDXL, plan: TrainingSetup, backend: Backend) -> list[Path]:
    """Train, writing what the config asks for; return the path of each word's last embedding file.

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
        place = stack.enter_context(output_dir.opened(plan)) if backend.is_main_process else None
        learned, loader = prepare(model, plan, backend)
        if not training.infer_during_train:
            model.release_vae()
        stop = stack.enter_context(StopSignals())
        desk = Desk(model, learned, loader, plan, backend, base_model, place) if place else None
        if desk:
            stack.callback(desk.close)
        start = (resumed.step, resumed.updates) if resumed else (0, 0)
        asked = lambda: stop.asked is not None  # noqa: E731
        for report in loop.run(model, learned, loader, plan.config, plan.updates, backend, start, asked):
            stop.ready = True
            if desk:
                desk.take(report)
        backend.barrier()
    last = _last(plan, report.step)
    if report.ended == DIVERGED:
        cause = diagnosis.cause(model, learned, loader, report, backend)
        raise UserError(
            f"step {report.step} is the {training.max_skipped_steps}th in a row {cause}; what was learned "
            f"before is in {', '.join(map(str, last))}"
        )
    if report.ended == ASKED:
        log.info("stopped after step %d of %d; --resume latest goes on", report.step, training.total_step)
        raise SystemExit(128 + (stop.asked or SIGNALS[0]))
    return last


def _check_resumed(plan: TrainingSetup, base_model: str, backend: Backend) -> None:
    """Raise UserError if the state to go on from was made on other weights, or is not that of the other ranks."""
    resumed = plan.resumed
    if resumed and resumed.base_model != base_model:
        raise UserError(
            f"--resume: {resumed.path} was made on other weights than {plan.config.run.weight}; give --weight those"
        )
    step = float(resumed.step) if resumed else -1.0
    if backend.all_reduce_mean([step])[0] != step:
        raise UserError("--resume: the ranks found different states; --save_path must be one folder for all of them")


def _last(plan: TrainingSetup, step: int) -> list[Path]:
    return [Path(plan.config.training.save_path) / file_name(plan, concept, step) for concept in plan.concepts]


def _initial_rows(table: np.ndarray, plan: TrainingSetup, encoder: int) -> np.ndarray:
    """Return what the rows of all words in the encoder, 0 or 1, are at first, float32 [rows, width]."""
    rows = []
    for number, concept in enumerate(plan.concepts):
        vectors = concept.entry.num_vectors
        if concept.start is not None:
            own = concept.start[encoder]
            rows.append(init.from_tokens(own, list(range(len(own))), vectors))
        elif concept.ids is not None:
            rows.append(init.from_tokens(table, concept.ids, vectors))
        else:
            rows.append(init.random_vectors(table, vectors, plan.config.training.seed, encoder + 1, number))
    return np.concatenate(rows)
