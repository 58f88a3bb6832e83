"""Training states to resume from."""

from __future__ import annotations

from pathlib import Path

from gm.lora import files as lora_files
from gm.training import checkpoint
from gm.training.callbacks.base import Callback, TrainerView, skip_failed_write
from gm.training.checkpoint import Checkpoint
from gm.training.step_result import DIVERGED, StepResult


class StateCheckpoints(Callback):
    """Saves `state_<step>.ckpt` every `checkpointing_steps` steps and at the last, but not after divergence.

    With `learned_embeds`, `checkpoint-<updates>/` holds another copy.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, trainer: TrainerView) -> None:
        self.trainer = trainer
        self.last_step = trainer.step  # of the last state, saved or not

    def on_step_end(self, result: StepResult) -> None:
        if result.ended == DIVERGED or not (result.is_last or self._is_due(result)):
            return
        with skip_failed_write("the training state", required=result.is_last):
            self._save(result)
        self.last_step = result.step

    def needs_state(self, step: int) -> bool:
        interval = self.trainer.setup.config.training.checkpointing_steps
        return step // interval > self.last_step // interval

    def _is_due(self, result: StepResult) -> bool:
        # Between updates every rank has gradient sums of its own.
        return self.needs_state(result.step) and (
            self.trainer.backend.world_size == 1 or result.gradient_norm is not None
        )

    def _save(self, result: StepResult) -> None:
        trainer = self.trainer
        config = trainer.setup.config
        states = {type(callback).__name__: callback.state_dict() for callback in trainer.callbacks}
        state = Checkpoint(
            step=result.step,
            updates=result.update,
            tensors=trainer.state.snapshot(),
            base_model=trainer.base_model,
            options=checkpoint.config_values(config),
            data_fingerprint=trainer.setup.data_fingerprint,
            metrics=trainer.running_loss.state_dict(),
            loras=lora_files.as_json(trainer.setup.loras),
            callbacks={name: values for name, values in states.items() if values},
        )
        keep = config.training.checkpoints_total_limit
        checkpoint.save(state, self.folder, keep)
        if config.training.learned_embeds and result.gradient_norm is not None:  # its name counts whole updates
            checkpoint.save_in_subfolder(state, self.folder, keep)
