"""A whole training run: from the plan to learned files, logs and previews in `save_path`."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np

from gm import config as configuration
from gm import sdxl
from gm.backend import Backend
from gm.concepts import files, initial
from gm.concepts.concept import Concept, words
from gm.data import latents
from gm.errors import UserError
from gm.generation import files as pictures
from gm.generation.text_to_image import Order, Painter
from gm.sdxl import SDXL
from gm.training import loop
from gm.training.console import Console
from gm.training.feed import Feed
from gm.training.plan import Plan
from gm.training.step import Learned
from gm.training.validation import HeldOut

log = logging.getLogger("gm")

_RESULTS = ("*_ti.ckpt", "*_ti.safetensors", "log.jsonl", "config.yaml", "previews")


def prepare(model: SDXL, plan: Plan, backend: Backend) -> tuple[Learned, Feed]:
    """Encode the pictures and fill in the initial rows."""
    config = plan.config
    encoded = latents.encode(
        model.first_stage_model, plan.pictures, config.data.flip, config.model.autoencoder.scale_factor
    )
    tables = (
        model.conditioner.embedders[0].transformer.text_model.embeddings.token_embedding.embedding_table,
        model.conditioner.embedders[1].model.token_embedding.embedding_table,
    )
    rows = [_initial_rows(t.asnumpy(), plan, encoder) for encoder, t in enumerate(tables, 1)]
    return Learned(rows, half=backend.dtype == ms.float16), Feed(plan, encoded, backend.rank, backend.world)


def concept(learned: Learned, plan: Plan, base_model: str, step: int) -> Concept:
    """Return what is learned so far, with the recipe that made it."""
    config = plan.config
    recipe = {name: dataclasses.asdict(getattr(config, name)) for name in ("run", "concept", "data", "training")}
    details = {
        "version": config.model.version,
        "base_model": base_model,
        "step": step,
        "seed": config.training.seed,
        "recipe": recipe,
    }
    return Concept(config.concept.placeholder_token, *learned.arrays(), config.run.pooling, details)


def run(model: SDXL, plan: Plan, backend: Backend) -> Path:
    """Train, writing what the config asks for; return the path of the last learned file.

    Only the first rank writes. UserError if `save_path` cannot be written to.
    """
    training, base_model = plan.config.training, sdxl.fingerprint(model)
    last = Path(training.save_path) / file_name(plan, training.total_step)
    learned, feed = prepare(model, plan, backend)
    if not training.infer_during_train:
        model.release_autoencoder()
    if not backend.leads:
        for _ in loop.run(model, learned, feed, training, plan.updates, backend):
            pass
        backend.gather()
        return last
    folder = open_folder(plan)
    console = Console(folder / "log.jsonl", training.total_step, plan.updates, training.log_interval)
    preview = _previews(model, plan, backend, folder, console) if training.infer_during_train else None
    held_out = _held_out(model, learned, feed, plan, backend, console)
    for report in loop.run(model, learned, feed, training, plan.updates, backend):
        console.show(report)
        if _due(report.step, training.save_ckpt_interval, training.total_step):
            now = concept(learned, plan, base_model, report.step)
            for ending in files.NAMES:
                files.save(now, (folder / file_name(plan, report.step)).with_suffix(ending))
        if preview and _due(report.step, training.infer_interval, training.total_step):
            console.say(f"preview {preview(concept(learned, plan, base_model, report.step))}")
    held_out()
    console.close()
    backend.gather()
    return last


def file_name(plan: Plan, step: int) -> str:
    """Return the name of the learned file of `step`, `SD-XL-base-1.0_3000_ti.ckpt`."""
    return f"{plan.config.model.version}_{step}_ti.ckpt"


def open_folder(plan: Plan) -> Path:
    """Make `save_path`, move what an earlier run left there aside, and write the resolved config."""
    folder = Path(plan.config.training.save_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = sorted(path for pattern in _RESULTS for path in folder.glob(pattern))
        if earlier:
            taken = {path.name for path in folder.glob("earlier_*")}
            aside = next(folder / name for k in itertools.count(1) if (name := f"earlier_{k}") not in taken)
            aside.mkdir()
            for path in earlier:
                path.rename(aside / path.name)
            log.info("moved the results of an earlier run to %s", aside)
        configuration.save(plan.config, folder / "config.yaml")
    except OSError as error:
        raise UserError(f"cannot write to --save_path {folder}: {error.strerror}; choose another folder") from error
    return folder


def _initial_rows(table: np.ndarray, plan: Plan, encoder: int) -> np.ndarray:
    vectors, seed = plan.config.concept.num_vectors, plan.config.training.seed
    if plan.initial_ids is None:
        return initial.random(table, vectors, seed, encoder)
    return initial.from_words(table, plan.initial_ids, vectors)


def _due(step: int, interval: int, last: int) -> bool:
    return step % interval == 0 or step == last


def _previews(model: SDXL, plan: Plan, backend: Backend, folder: Path, console: Console) -> Callable[[Concept], Path]:
    painter, config = Painter(model, backend, plan.config.run.pooling), plan.config
    count = config.sampling.num_cols * config.sampling.num_rows
    orders = [Order(plan.preview, config.sampling.seed + k) for k in range(count)]

    def preview(now: Concept) -> Path:
        console.line.end()  # what compiles says so
        drawn = [p for d in painter.draw(orders, words([now], config.model), config.sampling) for p in d.pictures]
        (folder / "previews").mkdir(exist_ok=True)
        recipe = {**dataclasses.asdict(config.sampling), "prompt": plan.preview, "step": now.details["step"]}
        sheet = pictures.grid(drawn, config.sampling.num_cols)
        return pictures.save(sheet, recipe, folder / "previews", f"step_{now.details['step']}")

    return preview


def _held_out(
    model: SDXL, learned: Learned, feed: Feed, plan: Plan, backend: Backend, console: Console
) -> Callable[[], None]:
    """Measure the loss on held-out draws now; the function returned measures again and says both."""
    training = plan.config.training
    if not training.held_out_draws:
        return lambda: None
    held_out = HeldOut(model, feed, training.held_out_draws, training.seed, backend)
    before = held_out.losses(*learned.arrays())

    def compare() -> None:
        after = held_out.losses(*learned.arrays())
        means, lower = (float(before.mean()), float(after.mean())), int((after < before).sum())
        console.say(f"held-out loss {means[0]:.4f} → {means[1]:.4f}; lower in {lower} of {len(after)} draws")
        console.record(held_out_before=means[0], held_out_after=means[1], held_out_lower=lower)

    return compare
