"""Command lines of other programs, parsed as the training script does."""

from __future__ import annotations

import shlex

from gm.config import Config, cli, coming_from

SECTIONS = ("run", "concept", "data", "training", "loss")
GUIDE = (
    "--pretrained_model_name_or_path=model.safetensors --train_data_dir=cat --learnable_property=object "
    "--placeholder_token='<cat-toy>' --initializer_token=toy --resolution=512 --train_batch_size=1 "
    "--gradient_accumulation_steps=4 --max_train_steps=3000 --learning_rate=5.0e-04 --scale_lr "
    "--lr_scheduler=constant --lr_warmup_steps=0 --output_dir=textual_inversion_cat --push_to_hub"
)
REQUIRED = (
    "--pretrained_model_name_or_path model.safetensors --train_data_dir cat --placeholder_token '<cat-toy>' "
    "--initializer_token toy"
)


def parse(command: str) -> Config:
    return cli.parse("test", SECTIONS, shlex.split(command), programs=coming_from.TRAINING)
