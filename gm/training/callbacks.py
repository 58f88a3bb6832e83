"""What the first rank does beside training: shows, logs, saves, draws previews, measures the validation loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.embeddings.nearest_tokens import nearest_tokens
from gm.errors import UserError
from gm.models.sdxl import SDXL
from gm.runtime.backend import Backend
from gm.training import checkpoint, html_report, output_dir
from gm.training.batches import BatchLoader
from gm.training.checkpoint import Checkpoint
from gm.training.concept_data import TrainingConcept
from gm.training.loggers import Console
from gm.training.loop import DIVERGED, StepResult
from gm.training.sample_images import Previews
from gm.training.setup import TrainingSetup
from gm.training.tracking import Tracker
from gm.training.train_step import TrainState
from gm.training.validation import ValidationHistory, ValidationLoss, change

_NEAREST = 5  # words that are named for a row
BEST = "best"  # in the place of the step in an embedding file's name


class Desk:
    """Takes the report of every step. What cannot be written on the way is said, and only the last write must work."""

    def __init__(
        self,
        model: SDXL,
        learned: TrainState,
        loader: BatchLoader,
        plan: TrainingSetup,
        backend: Backend,
        base_model: str,
        place: Path,
    ) -> None:
        training, resumed = plan.config.training, plan.resumed
        self.learned, self.plan, self.backend = learned, plan, backend
        self.base_model, self.place, self.saved = base_model, place, resumed.step if resumed else 0
        self.console = Console(place / output_dir.LOG, training.total_step, plan.updates, training.log_interval)
        self.previews = None
        if training.infer_during_train:
            self.previews = Previews(model, plan, backend, place / output_dir.PREVIEWS)
        self.tables = tuple(model.token_tables().values())
        self.tracker = Tracker(place / output_dir.CURVES, self.saved) if training.tensorboard else None
        self.held_out: ValidationLoss | None = None
        self.course: ValidationHistory | None = None
        if training.num_validation_samples:
            self.held_out = ValidationLoss(model, loader, training.num_validation_samples, training.seed, backend)
        if resumed:
            self.console.go_on(resumed.notes["console"])
            self.console.record(resumed_at=resumed.step, changed=plan.changed)
            self.console.say(f"going on from {resumed.path}, after step {resumed.step}")
            self.course = ValidationHistory(**resumed.notes["held_out"]) if resumed.notes["held_out"] else None
        if self.held_out and (self.course is None or len(self.course.first) != training.num_validation_samples):
            now = self.held_out.losses(*learned.arrays()).tolist()
            self.course = ValidationHistory(now, now, self.saved)
        if self.previews and not resumed:
            self._write("a preview", False, self._draw, 0, False)

    def take(self, done: StepResult) -> None:
        """Show a step, and write what is due after it."""
        training = self.plan.config.training
        last = done.ended is not None or done.step == training.total_step
        self.console.show(done)
        if self.tracker:
            values = {"loss": done.loss, "gradient_norm": done.gradient_norm, "learning_rate": done.learning_rate}
            self.tracker.values(done.step, {**values, "loss_smoothed": self.console.loss.value})
        if last or done.step % training.save_ckpt_interval == 0:
            self._write("the learned word", last, self._save_concept, done.step, str(done.step))
            self._describe(done.step, last)
        if self.previews and not done.ended and (last or done.step % training.infer_interval == 0):
            self._write("a preview", False, self._draw, done.step, last)
        if self.held_out and not done.ended and (last or done.step % training.validation_loss_interval == 0):
            self._measure(done.step, last)
        if last:
            self._write("the report", False, self._report)
        # Last: a run that is killed before goes on from an earlier state and writes all of this again.
        if done.ended != DIVERGED and (last or self._state_is_due(done)):
            self._write("the state", last, self._save_state, done)
            self.saved = done.step  # or tried to: what failed is tried again after another interval

    def close(self) -> None:
        self.console.close()
        if self.tracker:
            self.tracker.close()

    def _write(self, what: str, must: bool, write: Any, *arguments: Any) -> None:
        """Call `write`; a failure is said, or, if it `must` not fail, raised."""
        try:
            write(*arguments)
        except UserError as error:
            if must:
                raise
            self.console.say(f"{what} is not saved, training goes on: {error}")

    def _save_concept(self, step: int, name: str) -> None:
        now = concepts(self.learned, self.plan, self.base_model, step)
        for concept, each in zip(self.plan.concepts, now, strict=True):
            for ending in embedding_io.SAVE_FORMATS:
                embedding_io.save(each, (self.place / file_name(self.plan, concept, name)).with_suffix(ending))

    def _describe(self, step: int, last: bool) -> None:
        """Log the norm of each word's rows and the words they are most like."""
        for encoder, all_rows, table in zip(("clip_l", "clip_g"), self.learned.arrays(), self.tables, strict=True):
            for concept in self.plan.concepts:
                rows = all_rows[concept.rows]
                norms = np.linalg.norm(rows, axis=1).tolist()
                near = nearest_tokens(rows, table, _NEAREST)
                self.console.record(step=step, word=concept.word, encoder=encoder, norms=norms, nearest=near)
                lines = [", ".join(f"{word} {cosine:.2f}" for word, cosine in words) for words in near]
                if last:
                    more = f", and {len(lines) - 1} more rows" if len(lines) > 1 else ""
                    self.console.say(f"most like {concept.word} in {encoder}: {lines[0]}{more}")
                if self.tracker:
                    own = f"{concept.name}_" if len(self.plan.concepts) > 1 else ""
                    self.tracker.values(step, {f"norm_{encoder}/{own}row_{k}": norm for k, norm in enumerate(norms)})
                    self.tracker.text(step, f"nearest_{encoder}" + f"/{concept.name}" * bool(own), lines)

    def _state_is_due(self, done: StepResult) -> bool:
        interval = self.plan.config.training.checkpointing_steps
        due = done.step // interval > self.saved // interval
        # Between updates every rank has a sum of its own.
        return due and (self.backend.world_size == 1 or done.gradient_norm is not None)

    def _save_state(self, done: StepResult) -> None:
        course = None if self.course is None else dataclasses.asdict(self.course)
        notes = {"console": self.console.notes(), "held_out": course, "shown": self.plan.shown}
        config = self.plan.config
        now = Checkpoint(
            done.step, done.update, self.learned.snapshot(), self.base_model, checkpoint.config_values(config), notes
        )
        checkpoint.save(now, self.place, config.training.checkpoints_total_limit)

    def _draw(self, step: int, last: bool) -> None:
        assert self.previews
        self.console.line.end()  # what compiles says so
        path, sheet = self.previews.draw(concepts(self.learned, self.plan, self.base_model, step), step)
        self.console.say(f"preview {path}")
        if self.tracker:
            self.tracker.image(step, "preview", sheet)
        both = self.previews.compare(sheet, step) if last else None
        if both:
            self.console.say(f"before and after: {both}")

    def _report(self) -> None:
        config = self.plan.config
        options = {name: values for name, values in checkpoint.config_values(config).items() if name != "model"}
        title = f"{', '.join(concept.word for concept in self.plan.concepts)} on {config.model.version}"
        self.console.say(f"report {html_report.write(self.place, title, options)}")

    def _measure(self, step: int, last: bool) -> None:
        """Measure the validation loss, log it, keep the rows if they are the best so far, and warn if it rises."""
        assert self.held_out
        assert self.course
        first, now = np.asarray(self.course.first), self.held_out.losses(*self.learned.arrays())
        mean, low, high = change(first, now)
        verdict = self.course.add(step, now, self.console.loss.value)
        if verdict == "best":
            self._write("the best word so far", False, self._save_concept, step, BEST)
        if verdict == "overfit":
            best = self.course.best_step
            files_ = ", ".join(file_name(self.plan, concept, BEST) for concept in self.plan.concepts)
            where = f"the best rows, of step {best}, are in {files_}" if best else "none were better"
            self.console.say(f"step {step}: the validation loss rises while training's falls: over-fitting; {where}")
        lower = int((now < first).sum())
        words = self._words(now - first)
        if last:
            self.console.say(
                f"validation loss {first.mean():.4f} → {now.mean():.4f} ({mean:+.4f}, 95 % {low:+.4f} to {high:+.4f}); "
                f"lower in {lower} of {len(now)} draws; best {np.mean(self.course.best):.4f} after step "
                f"{self.course.best_step}"
            )
            if len(words) > 1:
                self.console.say("validation loss by word: " + ", ".join(f"{k} {v:+.4f}" for k, v in words.items()))
        if self.tracker:
            self.tracker.values(step, {"held_out": float(now.mean())})
        self.console.record(
            step=step,
            held_out=float(now.mean()),
            held_out_before=float(first.mean()),
            held_out_change=mean,
            held_out_change_low=low,
            held_out_change_high=high,
            held_out_lower=lower,
            held_out_words=words,
            held_out_best_step=self.course.best_step,
        )

    def _words(self, change: np.ndarray) -> dict[str, float]:
        """Return the mean of the held-out `change` of every draw for each word that the draws show."""
        assert self.held_out
        owners = np.asarray(self.held_out.owners)
        return {self.plan.concepts[k].word: float(change[owners == k].mean()) for k in sorted({*self.held_out.owners})}


def concepts(learned: TrainState, plan: TrainingSetup, base_model: str, step: int) -> list[Embedding]:
    """Return what is learned so far of each word, with the recipe that made it."""
    config, (clip_l, clip_g) = plan.config, learned.arrays()
    options = checkpoint.config_values(config)
    details = {
        "version": config.model.version,
        "base_model": base_model,
        "step": step,
        "seed": config.training.seed,
        "recipe": {name: options[name] for name in ("run", "concept", "data", "training", "loss")},
    }
    return [
        Embedding(
            concept.word, {"clip_l": clip_l[concept.rows], "clip_g": clip_g[concept.rows]}, config.run.pooling, details
        )
        for concept in plan.concepts
    ]


def file_name(plan: TrainingSetup, concept: TrainingConcept, step: int | str) -> str:
    """Return the name of an embedding file of `step`, `SD-XL-base-1.0_3000_ti.ckpt`, or of the `BEST`.

    Where several words are learned, it holds the word, too: `SD-XL-base-1.0_cat-toy_3000_ti.ckpt`.
    """
    own = f"_{concept.name}" if len(plan.concepts) > 1 else ""
    return f"{plan.config.model.version}{own}_{step}_ti.ckpt"
