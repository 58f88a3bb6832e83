"""Options that a model's family does not have, which are refused where they are given."""

from __future__ import annotations

from collections.abc import Iterator

from gm.config import SamplingConfig, TrainingConfig
from gm.config.model import FAMILIES, ModelConfig
from gm.errors import UserError

_OF_CLASS_EMBEDDING = {
    "sd_xl_base_ratios": "give --height and --width",
    **dict.fromkeys(
        ("orig_height", "orig_width", "target_height", "target_width", "crop_coords_top", "crop_coords_left"),
        "its UNet takes no sizes: leave it out",
    ),
    "add_pipeline": "it has no refiner: leave it out",
}
_OF_REFINER = ("pipeline_config", "pipeline_weight", "stage2strength", "aesthetic_score", "negative_aesthetic_score")


def inapplicable(model: ModelConfig) -> set[str]:
    """Return the sampling and run options that mean nothing to `model`, for pages that leave them out."""
    return set() if model.has_class_embedding else {*_OF_CLASS_EMBEDDING, *_OF_REFINER, "pooling"}


def check_sampling(model: ModelConfig, sampling: SamplingConfig) -> None:
    """Raise UserError for the first option that only SDXL has, if `model` is of another family."""
    if model.has_class_embedding:
        return
    default = SamplingConfig()
    for name, remedy in _OF_CLASS_EMBEDDING.items():
        value = getattr(sampling, name)
        if value != getattr(default, name):
            raise UserError(f"--{name} {value} is for SDXL, and {model.version} is {model.traits.title}; {remedy}")


def check_training(model: ModelConfig, training: TrainingConfig) -> None:
    """Raise UserError for the learning rate of a text encoder that `model` does not have."""
    for encoder in _encoders():
        option = f"learning_rate_{encoder}"
        value = getattr(training, option)
        if value is not None and encoder not in model.text_encoders:
            raise UserError(
                f"--{option} {value:g} is for another model; {model.version} ({model.traits.title}) has "
                f"{' and '.join(model.text_encoders)}: leave it out"
            )


def _encoders() -> Iterator[str]:
    yield from dict.fromkeys(encoder for family in FAMILIES.values() for encoder in family.text_encoders)
