"""What one visitor may ask of a machine that several share; far below what the options allow on the command line."""

from __future__ import annotations

from typing import Any

from gm.config import SamplingConfig
from gm.errors import UserError
from gm.text.tokenizer import check_placeholder

MAX_IMAGES = 100  # of a request
MAX_PROMPT = 10_000  # characters
# Of the options on the pages, by name; the widgets have them, too, but whoever sends the requests need not.
MAXIMA: dict[str, float] = {
    "height": 2048,  # as in AUTOMATIC1111
    "width": 2048,
    "sample_step": 1000,
    "batch_size": 16,
    "num_cols": MAX_IMAGES,
    "num_rows": MAX_IMAGES,
    "num_vectors": 75,
    "total_step": 100_000,
    "infer_interval": 100_000,
    "learning_rate": 10.0,
    "resolution": 2048,
    "train_batch_size": 64,
    "gradient_accumulation_steps": 1000,
    "lr_warmup_steps": 100_000,
    "num_validation_samples": 1000,
    "validation_loss_interval": 100_000,
    "save_ckpt_interval": 100_000,
    "min_snr_gamma": 1000.0,
}


def check_sampling(sampling: SamplingConfig) -> None:
    """Raise UserError, before anything is allocated, for a request that is too large."""
    for name in MAXIMA:
        _check_maximum(name, getattr(sampling, name, None))
    for name, text in (("prompt", sampling.prompt), ("negative prompt", sampling.negative_prompt)):
        check_text(text, name)
    inputs, count = max(len(sampling.img), 1), number_of_images(sampling)
    if count > MAX_IMAGES:
        of_inputs = f" × {inputs} init images" if inputs > 1 else ""
        raise UserError(
            f"{sampling.num_cols} × {sampling.num_rows} images{of_inputs} are {count}; ask for at most {MAX_IMAGES}"
        )


def number_of_images(sampling: SamplingConfig) -> int:
    """Return how many images a request asks for: those of each init image."""
    return sampling.num_cols * sampling.num_rows * max(len(sampling.img), 1)


def check_training(options: dict[str, Any]) -> None:
    """Raise UserError for options of a training run, by name, that are too large or cannot be used."""
    check_placeholder(str(options["placeholder_token"]))
    for name in MAXIMA:
        _check_maximum(name, options.get(name))
    for name, value in options.items():
        if isinstance(value, str):
            check_text(value, name.replace("_", " "))


def check_text(text: str, name: str) -> None:
    """Raise UserError for a text that is too long."""
    if len(text) > MAX_PROMPT:
        raise UserError(f"the {name} has {len(text)} characters; it may have at most {MAX_PROMPT}")


def _check_maximum(name: str, value: float | None) -> None:
    if value is not None and not value <= MAXIMA[name]:
        raise UserError(f"{name.replace('_', ' ')} is {value}; it must be at most {MAXIMA[name]} here")
