"""Running ahead, as on Ascend: the next step is launched before the result of one is read, and nothing else changes."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.checkpoints import loading
from gm.models import stable_diffusion
from gm.models.stable_diffusion import StableDiffusion
from gm.runtime.backend import Backend
from gm.training import prefetch, setup, trainer
from gm.training.batches import BatchLoader
from gm.training.callbacks import Callback
from gm.training.step_launcher import LaunchedStep, StepLauncher
from gm.training.step_result import STOPPED, StepResult
from gm.training.train_step import Batch
from gm.training.trainer import Trainer
from tests.project import Workshop
from tests.training.test_resume import contents

EAGER = Backend("CPU", graph=False, dtype=ms.float32)
AHEAD = Backend("Ascend", graph=False, dtype=ms.float32)  # only the loop of training asks for the name


def prepare(workshop: Workshop, backend: Backend = AHEAD, **training: Any) -> Trainer:
    return trainer.prepare(workshop.model, setup.prepare(workshop.config(training=training)), backend)


def fresh_model(workshop: Workshop) -> StableDiffusion:
    """Return a model whose autoencoder a run may give away."""
    config = workshop.config()
    model = stable_diffusion.build(config.model)
    loading.load_weights(model, config.run.weight, config.model)
    return model


class Needs(Callback):
    """Records results, and needs the state after some steps."""

    def __init__(self, steps: Sequence[int] = ()) -> None:
        self.steps = steps
        self.results: list[StepResult] = []

    def on_step_end(self, result: StepResult) -> None:
        self.results.append(dataclasses.replace(result, seconds=0.0))

    def needs_state(self, step: int) -> bool:
        return step in self.steps


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that records launched and read steps: "+3", "-3"."""
    recorded: list[str] = []
    launch, read = StepLauncher.launch, LaunchedStep.read

    def recording_launch(self: StepLauncher, step: int, batch: Batch, started: float) -> LaunchedStep:
        recorded.append(f"+{step}")
        return launch(self, step, batch, started)

    def recording_read(self: LaunchedStep) -> Any:
        recorded.append(f"-{self.step}")
        return read(self)

    monkeypatch.setattr(StepLauncher, "launch", recording_launch)
    monkeypatch.setattr(LaunchedStep, "read", recording_read)
    return recorded


def test_a_step_is_launched_before_the_one_before_it_is_read(workshop: Workshop, events: list[str]) -> None:
    run = prepare(workshop, total_step=7)
    run.callbacks = [Needs([4])]
    run.train()
    # The first result comes at once; nothing is launched past a step whose state is needed, or past the last.
    assert " ".join(events) == "+1 -1 +2 +3 -2 +4 -3 -4 +5 +6 -5 +7 -6 -7"


def test_callbacks_need_the_state_unless_they_say_otherwise(workshop: Workshop, events: list[str]) -> None:
    run = prepare(workshop, total_step=3)
    run.callbacks = [Callback()]
    run.train()
    assert " ".join(events) == "+1 -1 +2 -2 +3 -3"


def test_on_the_cpu_every_step_is_read_at_once(workshop: Workshop, events: list[str]) -> None:
    run = prepare(workshop, EAGER, total_step=3)
    run.callbacks = [Needs()]
    run.train()
    assert " ".join(events) == "+1 -1 +2 -2 +3 -3"


def test_the_files_of_a_run_are_the_same(workshop: Workshop, tmp_path: Path, events: list[str]) -> None:
    options = {
        "total_step": 9,
        "gradient_accumulation_steps": 2,
        "log_interval": 1,
        "checkpointing_steps": 4,
        "save_ckpt_interval": 5,
        "infer_during_train": True,
        "infer_interval": 5,
        "num_validation_samples": 1,
        "validation_loss_interval": 7,
        "save_path": str(tmp_path / "run"),
    }
    found = []
    for backend in (EAGER, AHEAD):
        training_setup = setup.prepare(workshop.config(training=options))
        trainer.run(fresh_model(workshop), training_setup, backend)
        found.append(contents(tmp_path / "run"))
        (tmp_path / "run").rename(tmp_path / backend.device)
    assert found[0] == found[1]
    assert {"step_0.png", "step_5.png", "step_9.png", "smallest_5_ti.ckpt", "smallest_9_ti.ckpt"} <= set(found[0])
    assert len(found[0]["log"]) == 9 + 2 * 2 + 2  # type: ignore[arg-type]
    assert " ".join(events[18:]) == "+1 -1 +2 +3 -2 +4 -3 -4 +5 -5 +6 +7 -6 -7 +8 -8 +9 -9"


@pytest.mark.parametrize("max_skipped_steps", [1, 2])
def test_divergence_ends_at_the_same_step_with_the_same_vectors(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, events: list[str], max_skipped_steps: int
) -> None:
    original = BatchLoader.batch

    def batch(self: BatchLoader, step: int) -> Batch:
        good = original(self, step)
        return good if step in (0, 1, 3) else good._replace(x=Tensor(good.x.asnumpy() * np.float32(np.inf)))

    monkeypatch.setattr(BatchLoader, "batch", batch)
    found = []
    for backend in (EAGER, AHEAD):
        events.clear()
        run = prepare(workshop, backend, total_step=20, max_skipped_steps=max_skipped_steps)
        recorder = Needs()
        run.callbacks = [recorder]
        run.train()
        state = {name: value.tobytes() for name, value in run.state.snapshot().items()}
        found.append((list(map(repr, recorder.results)), state))
    assert found[0] == found[1]
    last = {1: 3, 2: 6}[max_skipped_steps]
    assert recorder.results[-1].step == last
    assert events[-1] == f"-{last}"  # nothing was launched past the step that ended the run


def test_a_stop_signal_ends_the_run_two_steps_later_at_most_and_it_resumes_exactly(
    workshop: Workshop, tmp_path: Path, events: list[str]
) -> None:
    options = {"total_step": 8, "checkpointing_steps": 100, "save_path": str(tmp_path / "run")}
    expected = prepare(workshop, EAGER, **options)
    expected.train()

    class Interrupt(Needs):
        def on_step_end(self, result: StepResult) -> None:
            super().on_step_end(result)
            if result.step == 3:  # step 4 is launched
                self.trainer.signals.received = signal.SIGINT

        def on_train_begin(self, trainer: Any) -> None:
            self.trainer = trainer

    events.clear()
    interrupt = Interrupt()
    training_setup = setup.prepare(workshop.config(training=options))
    with pytest.raises(SystemExit, match=str(128 + signal.SIGINT)):
        trainer.run(fresh_model(workshop), training_setup, AHEAD, [interrupt])
    assert " ".join(events) == "+1 -1 +2 +3 -2 +4 -3 +5 -4 +6 -5 -6"
    assert [result.ended for result in interrupt.results] == [None] * 5 + [STOPPED]
    config = workshop.config(training={**options, "resume": "latest"})
    resumed = trainer.prepare(workshop.model, setup.prepare(config), AHEAD)
    assert resumed.step == 6
    resumed.callbacks = [Needs()]
    resumed.train()
    for name, value in expected.state.snapshot().items():
        assert np.array_equal(resumed.state.snapshot()[name], value), name


def ranks_end_at(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, needs: Sequence[int], stop_from: int, skipped: Sequence[int]
) -> tuple[int, str | None]:
    """Return the last step of one of two ranks and why it ended, if the ranks hear of a stop from a step on."""

    class Launcher:
        """Launches nothing; every rank reads the same means, as after a reduction."""

        def __init__(self, *arguments: object) -> None:
            """Takes what `StepLauncher` does."""

        def has_update(self, step: int) -> bool:
            return step % 3 == 0

        def launch(self, step: int, batch: object, started: float) -> LaunchedStep:
            launched.append(step)
            means = [0.5, float(step not in skipped), float(step >= stop_from)]
            return LaunchedStep(step, 0, 0.0, {}, started, Tensor(1.0) if step % 3 == 0 else None, lambda: means)

    launched: list[int] = []
    monkeypatch.setattr(trainer, "StepLauncher", Launcher)
    run = prepare(workshop, total_step=20, max_skipped_steps=4)
    run.backend = dataclasses.replace(AHEAD, world_size=2)
    run.state.set_vectors = lambda vectors: None  # type: ignore[method-assign]
    run.callbacks = [Needs(needs)]
    result = run.train()
    assert launched == [*range(1, result.step + 1)]  # none that the other rank has not launched
    return result.step, result.ended


@pytest.mark.parametrize("stop_from", [1, 2, 3, 5, 6, 7, 99])
@pytest.mark.parametrize("skipped", [(), (8, 9, 10, 11), (2, 3, 5, 6, 7, 8)], ids=str)
def test_ranks_end_at_the_same_step(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, stop_from: int, skipped: Sequence[int]
) -> None:
    """Only the first rank has callbacks, so that it reads other steps at once than the second."""
    ends = {
        ranks_end_at(workshop, monkeypatch, needs, stop_from, skipped)
        for needs in ((), (1, 2, 3, 4, 5, 6, 7, 8), (2, 5, 8), (3, 6))
    }
    assert len(ends) == 1


def test_batches_are_prepared_on_a_thread_with_the_same_values(workshop: Workshop) -> None:
    loader = prepare(workshop).batches
    threads = []
    original = loader.batch

    def batch(step: int) -> Batch:
        threads.append(threading.current_thread() is threading.main_thread())
        return original(step)

    loader.batch = batch  # type: ignore[method-assign]
    expected = [original(step) for step in range(2, 6)]
    for threaded in (False, True):
        threads.clear()
        found = list(prefetch.batches(loader, range(2, 6), threaded))
        assert len(found) == 4
        for ours, theirs in zip(found, expected, strict=True):
            assert all(
                np.array_equal(a.asnumpy(), b.asnumpy()) for a, b in zip(ours.inputs, theirs.inputs, strict=True)
            )
        assert threads == [not threaded] * 4
    assert not list(prefetch.batches(loader, range(2, 2), True))


def test_the_thread_of_batches_ends_with_the_run_and_passes_errors_on(workshop: Workshop) -> None:
    loader = prepare(workshop).batches
    before = threading.active_count()
    batches = prefetch.batches(loader, range(100), True)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()  # as when the run stops
    assert threading.active_count() == before

    def broken(step: int) -> Batch:
        raise ValueError(f"batch {step}")

    loader.batch = broken  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="batch 7"):
        next(prefetch.batches(loader, range(7, 9), True))
    assert threading.active_count() == before
