"""Trainer: the training loop, and `run`, a whole run with its output folder, stop signals and callbacks."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import Tensor

from gm.data import latent_cache
from gm.errors import UserError
from gm.models import sdxl
from gm.models.sdxl import SDXL
from gm.runtime.backend import Backend, compile_cell
from gm.training import divergence, embedding_files, lr_schedule, optimizer, output_dir
from gm.training.batches import BatchLoader
from gm.training.callbacks import default_callbacks
from gm.training.callbacks.base import Callback
from gm.training.divergence import DivergenceGuard
from gm.training.initial_vectors import initial_vectors
from gm.training.setup import TrainingSetup
from gm.training.signals import SIGNALS, StopSignals
from gm.training.step_result import DIVERGED, STOPPED, RunningLoss, StepResult
from gm.training.train_state import TrainState
from gm.training.train_step import TrainStep

log = logging.getLogger("gm")


@dataclass
class Trainer:
    """Trains the embedding vectors in `state` on `batches`; the model stays frozen.

    `base_model` is the fingerprint of its weights. Training starts after the checkpoint that the setup resumes from.
    """

    model: SDXL
    setup: TrainingSetup
    backend: Backend
    state: TrainState
    batches: BatchLoader
    base_model: str = ""
    callbacks: Sequence[Callback] = ()
    signals: StopSignals = field(default_factory=StopSignals)

    def __post_init__(self) -> None:
        resume_from = self.setup.resume_from
        self.step = resume_from.step if resume_from else 0  # steps and updates so far
        self.updates = resume_from.updates if resume_from else 0
        self.running_loss = RunningLoss(**resume_from.metrics) if resume_from else RunningLoss()

    def train(self) -> StepResult:
        """Train to the end, calling the callbacks in their order; return the result of the last step."""
        try:
            self._begin()
            for result in self.steps():
                self.signals.ready = True
                for callback in self.callbacks:
                    callback.on_step_end(result)
        finally:
            for callback in self.callbacks:
                callback.close()
        return result

    def steps(self) -> Iterator[StepResult]:
        """Train, and yield the result of each step: to the last step, a stop signal on any rank, or divergence.

        After divergence the vectors are those of the last finite step.
        """
        training = self.setup.config.training
        train_step, optimizer_step = self._compile()
        guard = DivergenceGuard(self.state, training.max_skipped_steps)
        for step in range(self.step + 1, training.total_step + 1):
            started = time.perf_counter()
            loss, finite = train_step(*self.batches.batch(step - 1).inputs)
            learning_rates = self._learning_rates()
            gradient_norm = None
            if step % training.gradient_accumulation_steps == 0 or step == training.total_step:
                with self.backend.abort_after_timeout():
                    gradient_norm = float(optimizer_step(*(Tensor(rate, ms.float32) for rate in learning_rates)))
                self.updates += 1
            mean_loss, all_finite, stop_requested = self._all_reduce(loss, finite)
            ended = None
            # Several ranks stop after an update only: before it, each has gradient sums of its own.
            if stop_requested and (self.backend.world_size == 1 or gradient_norm is not None):
                ended = STOPPED
            if guard.check(all_finite):
                ended = DIVERGED
            self.step = step
            yield StepResult(
                step=step,
                update=self.updates,
                loss=mean_loss,
                loss_smoothed=self.running_loss.add(mean_loss, all_finite),
                finite=all_finite,
                skipped=self.running_loss.skipped,
                learning_rate=max(learning_rates),
                gradient_norm=gradient_norm,
                seconds=time.perf_counter() - started,
                ended=ended,
                is_last=ended is not None or step == training.total_step,
            )
            if ended:
                return
            if gradient_norm is not None:
                guard.after_update()

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

    def _compile(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return training step and optimizer, in graph mode as graphs, compiled at their first call."""
        config = self.setup.config
        half = self.backend.dtype == ms.float16
        train_step = TrainStep(self.model, self.state, half, config.loss, self.batches.negative)
        token_norms: tuple[float, ...] = ()
        if config.training.preserve_embedding_norm:
            token_norms = tuple(self.model.token_norms(self.batches.prompt_tokens).values())
        update = optimizer.create_optimizer(self.state, config.training, self.backend.world_size, token_norms)
        graph = self.backend.graph
        return (
            compile_cell(train_step, graph, "the training graph, with the first step", gradient=True),
            compile_cell(update, graph),
        )

    def _all_reduce(self, loss: Tensor, finite: Tensor) -> tuple[float, bool, bool]:
        """Return over all ranks the mean loss, whether all were finite, and whether any was signalled to stop."""
        # float() waits for the device.
        flags = (float(loss), float(finite), float(self.signals.stop_requested))
        mean_loss, finite_share, stop_share = self.backend.all_reduce_mean(flags)
        return mean_loss, finite_share == 1.0, stop_share > 0

    def _learning_rates(self) -> tuple[float, ...]:
        """Return the learning rate of each text encoder at the next update."""
        num_updates = self.setup.num_updates
        update = min(self.updates, num_updates - 1)
        training = self.setup.config.training
        return lr_schedule.learning_rates(update, num_updates, training, self.state.encoders, self.backend.world_size)


def prepare(model: SDXL, setup: TrainingSetup, backend: Backend) -> Trainer:
    """Encode the images, and initialize the embedding vectors or restore the checkpoint to resume from."""
    config = setup.config
    latents = latent_cache.encode_images(
        model.first_stage_model,
        setup.images,
        config.data.random_flip,
        config.model.vae.scale_factor,
        config.data.unmasked_weight,
    )
    vectors = initial_vectors(model, setup)
    state = optimizer.create_train_state(vectors, config.training.optimizer, half=backend.dtype == ms.float16)
    if setup.resume_from:
        state.restore(setup.resume_from.tensors)
    batches = BatchLoader(setup, latents, backend.rank, backend.world_size)
    return Trainer(model, setup, backend, state, batches, sdxl.fingerprint(model))


def run(model: SDXL, setup: TrainingSetup, backend: Backend, callbacks: Sequence[Callback] = ()) -> list[Path]:
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


def _check_resume(model: SDXL, setup: TrainingSetup, backend: Backend) -> None:
    """Raise UserError if the checkpoint to resume from is of other weights, or not the same on all ranks."""
    resume_from = setup.resume_from
    if resume_from and resume_from.base_model != sdxl.fingerprint(model):
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
