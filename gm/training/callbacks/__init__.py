"""Callbacks of training runs: progress, loggers, checkpoints, sample images, validation loss and report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gm.training import output_dir
from gm.training.callbacks.base import Callback
from gm.training.callbacks.console import ConsoleProgress
from gm.training.callbacks.embedding_checkpoints import EmbeddingCheckpoints, LearnedEmbeds, OutputFile
from gm.training.callbacks.embedding_summary import EmbeddingSummary
from gm.training.callbacks.json_lines import JsonLinesLogger
from gm.training.callbacks.report import HtmlReport
from gm.training.callbacks.sample_images import SampleImages
from gm.training.callbacks.state_checkpoints import StateCheckpoints
from gm.training.callbacks.tensorboard import TensorBoardLogger
from gm.training.callbacks.validation import Validation
from gm.training.setup import TrainingSetup

__all__ = ["Callback", "default_callbacks"]


def default_callbacks(setup: TrainingSetup, folder: Path, more: Sequence[Callback] = ()) -> list[Callback]:
    """Return the callbacks that the config asks for, in the order in which they are called, with `more` loggers."""
    training = setup.config.training
    callbacks: list[Callback] = [
        ConsoleProgress(training.total_step, setup.num_updates),
        JsonLinesLogger(folder / output_dir.LOG, training.log_interval),
    ]
    if training.tensorboard:
        step = setup.resume_from.step if setup.resume_from else 0
        callbacks.append(TensorBoardLogger(folder / output_dir.TENSORBOARD, step))
    callbacks += more
    callbacks += [EmbeddingCheckpoints(folder), EmbeddingSummary()]
    if training.learned_embeds:
        callbacks.append(LearnedEmbeds(folder))
    if training.output_name:
        callbacks.append(OutputFile(folder / training.output_name))
    if training.num_validation_samples:
        callbacks.append(Validation(folder))
    if training.infer_during_train:
        callbacks.append(SampleImages(folder / output_dir.PREVIEWS))
    # The report shows everything above. The training state is written last: a run that is killed before resumes from
    # an earlier state and writes all of the above again.
    return [*callbacks, HtmlReport(folder), StateCheckpoints(folder)]
