"""Trainer: the training loop, and `run`, a whole run with its output folder, stop signals and callbacks."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mindspore as ms

from gm.data import latent_cache
from gm.errors import UserError
from gm.models import stable_diffusion
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime.backend import Backend
from gm.training import (
    context_prompts,
    divergence,
    embedding_files,
    optimizer,
    output_dir,
    prefetch,
    token_norms,
)
from gm.training.batches import BatchLoader
from gm.training.callbacks import default_callbacks
from gm.training.callbacks.base import Callback
from gm.training.divergence import DivergenceGuard
from gm.training.initial_vectors import initial_vectors
from gm.training.setup import TrainingSetup
from gm.training.signals import SIGNALS, StopSignals
from gm.training.step_launcher import LaunchedStep, StepLauncher
from gm.training.step_result import DIVERGED, STOPPED, RunningLoss, StepResult
from gm.training.train_state import TrainState, Vectors

log = logging.getLogger("gm")


@dataclass
class Trainer:
    """Trains the embedding vectors in `state` on `batches`; the model stays frozen.

    `base_model` is the fingerprint of its weights; `initial_vectors` are those before the first step. Training starts
    after the checkpoint that the setup resumes from.
    """

    model: StableDiffusion
    setup: TrainingSetup
    backend: Backend
    state: TrainState
    batches: BatchLoader
    base_model: str = ""
    callbacks: Sequence[Callback] = ()
    signals: StopSignals = field(default_factory=StopSignals)
    initial_vectors: Vectors = field(default_factory=dict)

    def __post_init__(self) -> None:
        resume_from = self.setup.resume_from
        self.step = resume_from.step if resume_from else 0  # steps and updates so far
        self.updates = resume_from.updates if resume_from else 0
        self.running_loss = RunningLoss(**resume_from.metrics) if resume_from else RunningLoss()
        self.stop_requested = False  # on any rank, in the last step that was read
        self.last_read = 0.0  # time.perf_counter()

    def train(self) -> StepResult:
        """Train to the end, calling the callbacks in their order; return the result of the last step."""
        try:
            vectors = self.state.vector_arrays()
            self._begin()
            for number, result in enumerate(self.steps(run_ahead=self.backend.device == "Ascend")):
                if number == 0:
                    self._first_step(vectors)
                for callback in self.callbacks:
                    callback.on_step_end(result)
        finally:
            for callback in self.callbacks:
                callback.close()
        return result

    def steps(self, run_ahead: bool = False) -> Iterator[StepResult]:
        """Train, and yield the result of each step: to the last step, a stop signal on any rank, or divergence.

        After divergence the vectors are those of the last finite step. With `run_ahead`, the device never waits for
        Python: step k + 1 is launched before the result of step k is read, unless the state after step k is needed.
        Then a stop signal takes effect up to two steps later.
        """
        training = self.setup.config.training
        launcher = StepLauncher(self, self.signals, self.updates, run_ahead)
        guard = DivergenceGuard(self.state, training.max_skipped_steps)
        unread: deque[LaunchedStep] = deque()
        steps = range(self.step, training.total_step)
        with contextlib.closing(prefetch.batches(self.batches, steps, threaded=run_ahead)) as batches:
            for step in range(self.step + 1, training.total_step + 1):
                started = time.perf_counter()
                unread.append(launcher.launch(step, next(batches), started))
                # A step that was launched past is read first: what it says may forbid to launch past this one.
                while unread and (len(unread) > 1 or not (run_ahead and self._may_run_ahead(launcher, guard, step))):
                    result = self._read(unread.popleft(), guard, run_ahead)
                    yield result
                    if result.ended:
                        return

    def _may_run_ahead(self, launcher: StepLauncher, guard: DivergenceGuard, step: int) -> bool:
        """Return whether the next step may be launched before the result of `step` is read.

        Not if the run may end here, which all ranks decide alike, nor if a callback uses the state after `step`.
        """
        may_stop = self.stop_requested and (self.backend.world_size == 1 or launcher.has_update(step))
        is_last = step == self.setup.config.training.total_step
        ends = is_last or may_stop or guard.may_end or not self.signals.ready
        return not ends and not any(callback.needs_state(step) for callback in self.callbacks)

    def _read(self, launched: LaunchedStep, guard: DivergenceGuard, run_ahead: bool) -> StepResult:
        """Wait for a step; return its result."""
        loss, finite, stop_requested, gradient_norm, context_loss = launched.read()
        # A request that comes with this step is too late where others may have launched the next one already.
        stops = self.stop_requested if run_ahead else stop_requested
        self.stop_requested = stop_requested
        ended = None
        # Several ranks stop after an update only: before it, each has gradient sums of its own.
        if stops and (self.backend.world_size == 1 or gradient_norm is not None):
            ended = STOPPED
        if guard.check(finite, launched.vectors):
            ended = DIVERGED
        self.step = launched.step
        self.updates = launched.update
        seconds = time.perf_counter() - max(launched.started, self.last_read)
        self.last_read = time.perf_counter()
        return StepResult(
            step=launched.step,
            update=launched.update,
            loss=loss,
            loss_smoothed=self.running_loss.add(loss, finite),
            finite=finite,
            skipped=self.running_loss.skipped,
            learning_rate=launched.learning_rate,
            gradient_norm=gradient_norm,
            context_loss=context_loss,
            seconds=seconds,
            ended=ended,
            is_last=ended is not None or launched.step == self.setup.config.training.total_step,
        )

    def log(self, record: dict[str, Any]) -> None:
        """Pass a record (its "step", numbers and text) to `on_log` of all callbacks."""
        for callback in self.callbacks:
            callback.on_log(record)

    def _begin(self) -> None:
        resume_from = self.setup.resume_from
        for callback in self.callbacks:
            if resume_from and type(callback).__name__ in resume_from.callbacks:
                callback.load_state_dict(resume_from.callbacks[type(callback).__name__])
            callback.on_train_begin(self)

    def _first_step(self, vectors: Vectors) -> None:
        """Let callbacks use the `vectors` before the first step, now that all ranks have taken it."""
        for callback in self.callbacks:
            callback.on_first_step(vectors)
        self.signals.ready = True


def prepare(model: StableDiffusion, setup: TrainingSetup, backend: Backend) -> Trainer:
    """Encode the images, and initialize the embedding vectors or restore the checkpoint to resume from."""
    config = setup.config
    latents = latent_cache.encode_images(
        model.first_stage_model,
        setup.images,
        config.data.random_flip,
        config.model.vae.scale_factor,
        config.data.unmasked_weight,
    )
    context = context_prompts.create_sampler(model, config, setup.context_prompts)
    batches = BatchLoader(setup, latents, backend.rank, backend.world_size, context)
    vectors = initial_vectors(model, setup)
    if config.training.optimizer == "direction":
        vectors = token_norms.scale_vectors(vectors, setup, model.token_tables(), batches.prompt_tokens)
    state = optimizer.create_train_state(vectors, config.training.optimizer, half=backend.dtype == ms.float16)
    if setup.resume_from:
        state.restore(setup.resume_from.tensors)
    fingerprint = stable_diffusion.fingerprint(model)
    return Trainer(model, setup, backend, state, batches, fingerprint, initial_vectors=vectors)


def run(
    model: StableDiffusion, setup: TrainingSetup, backend: Backend, callbacks: Sequence[Callback] = ()
) -> list[Path]:
    """Train with all outputs that the config asks for; return the path of the last embedding file of each concept.

    `callbacks` come after the loggers and before the checkpoints. Only the first rank writes files and has callbacks.
    After a stop signal everything is saved, and SystemExit raised with 128 plus its number. Raises UserError if
    `save_path` is not writable or locked by another run, if the checkpoint is of other weights, and after divergence.
    """
    training = setup.config.training
    _check_resume(model, setup, backend)
    if setup.resume_from and setup.resume_from.step == training.total_step:
        log.info("all %d steps are done; a higher --total_step continues", setup.resume_from.step)
        return _embedding_paths(setup, setup.resume_from.step)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(output_dir.acquire(setup)) if backend.is_main_process else None
        trainer = prepare(model, setup, backend)
        if not training.infer_during_train:
            model.release_vae()
        if folder:
            trainer.callbacks = default_callbacks(setup, folder, callbacks)
        trainer.signals = stack.enter_context(StopSignals())
        result = trainer.train()
        backend.barrier()
    return _finish(trainer, result)


def _finish(trainer: Trainer, result: StepResult) -> list[Path]:
    """Return the paths of the embedding files, or raise for a run that ended early."""
    training = trainer.setup.config.training
    paths = _embedding_paths(trainer.setup, result.step)
    if result.ended == DIVERGED:
        cause = divergence.cause(trainer.model, trainer.state, result, trainer.backend)
        raise UserError(
            f"step {result.step} is the {training.max_skipped_steps}th in a row {cause}; the last good vectors are in "
            f"{', '.join(map(str, paths))}"
        )
    if result.ended == STOPPED:
        log.info("stopped after step %d of %d; --resume latest continues", result.step, training.total_step)
        raise SystemExit(128 + (trainer.signals.received or SIGNALS[0]))
    return paths


def _check_resume(model: StableDiffusion, setup: TrainingSetup, backend: Backend) -> None:
    """Raise UserError if the checkpoint to resume from is of other weights, or not the same on all ranks."""
    resume_from = setup.resume_from
    if resume_from and resume_from.base_model != stable_diffusion.fingerprint(model):
        raise UserError(
            f"--resume: {resume_from.path} was saved with other weights than {setup.config.run.weight}; give those to "
            "--weight"
        )
    step = float(resume_from.step) if resume_from else -1.0
    if backend.all_reduce_mean([step])[0] != step:
        raise UserError("--resume: the ranks found different checkpoints; --save_path must be a folder shared by all")


def _embedding_paths(setup: TrainingSetup, step: int) -> list[Path]:
    folder = Path(setup.config.training.save_path)
    return [folder / embedding_files.file_name(setup, concept, step) for concept in setup.concepts]
