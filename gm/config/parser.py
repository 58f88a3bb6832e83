"""Argument parser of all commands, and flags generated from the fields of `Config`."""

from __future__ import annotations

import argparse
import re
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, NoReturn

from gm.config import Config, paths, schema
from gm.errors import UserError, did_you_mean

DEFAULT_CONFIG = "configs/training/sd_xl_base_finetune_textual_inversion.yaml"

# Flags of diffusers', kohya's and OneTrainer's commands, with the one that they correspond to here.
_FOREIGN_FLAGS = {
    "--max_train_steps": "--total_step counts the steps, gradient accumulation steps included",
    "--max_train_epochs": "--total_step counts the steps",
    "--num_train_epochs": "--total_step counts the steps",
    "--train_data_dir": "the folder of images is --data_path",
    "--instance_data_dir": "the folder of images is --data_path",
    "--output_dir": "the output folder is --save_path",
    "--output_name": "the output folder is --save_path, the files are named after model and placeholder token",
    "--logging_dir": "logs are in --save_path, for TensorBoard with --tensorboard",
    "--mixed_precision": "the dtype of the frozen weights is --precision (float32, float16, bfloat16)",
    "--pretrained_model_name_or_path": "the converted weights are --weight",
    "--token_string": "the placeholder token is --placeholder_token",
    "--init_word": "the initializer token is --initializer_token",
    "--num_vectors_per_token": "the number of vectors is --num_vectors",
    "--save_steps": "the interval of embedding files is --save_ckpt_interval",
    "--save_every_n_steps": "the interval of embedding files is --save_ckpt_interval",
    "--resume_from_checkpoint": "training is resumed with --resume",
    "--optimizer_type": "the optimizer is --optimizer",
    "--use_8bit_adam": "the optimizer state is some kilobytes and stays float32; leave it out",
    "--caption_extension": "captions are read from .txt and .caption files",
    "--weights": "an embedding file to start from is --initializer_file",
    "--network_weights": "LoRA files are --lora_weight FILE:strength",
    "--network_mul": "the strength of a LoRA is part of --lora_weight FILE:strength",
    "--base_weights": "LoRA files to merge are --lora_weight FILE:strength",
    "--base_weights_multiplier": "the strength of a LoRA is part of --lora_weight FILE:strength",
    "--lora_path": "LoRA files are --lora_weight FILE:strength",
    "--validation_prompt": "prompts of sample images are --validation_prompts",
    "--validation_steps": "the interval of sample images is --infer_interval, with --infer_during_train",
}


class Parser(argparse.ArgumentParser):
    """Argument parser that raises a UserError of one line where argparse would print its usage and exit."""

    def __init__(self, description: str, required: Sequence[str] = ()) -> None:
        super().__init__(description=description, allow_abbrev=False)
        self.required = required
        self.other_flags: Sequence[str] = ()  # of the program whose command this is, to be suggested, too

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")

    def add_config(self, default: str = DEFAULT_CONFIG, meaning: str = "") -> None:
        """Add the flag --config. A shipped config is found from any folder."""
        meaning = meaning or "YAML file of options"
        self.add_argument("--config", type=paths.find_shipped, default=default, help=f"{meaning} (default: {default})")

    def add_path(self, flag: str, meaning: str, **options: Any) -> None:
        """Add a flag whose value is a path, or with `nargs` several; `~` is the home folder."""
        self.add_argument(flag, type=paths.expand, help=meaning, **options)

    def add_overwrite(self) -> None:
        """Add the flag --overwrite."""
        self.add_switch("--overwrite", "replace a target that already exists")

    def add_switch(self, flag: str, meaning: str) -> None:
        """Add a flag whose value is "true" or "false", and "true" when it stands alone."""
        self.add_argument(
            flag,
            type=str.lower,
            choices=("true", "false"),
            nargs="?",
            const="true",
            default="false",
            help=f"{meaning} (default: %(default)s)",
        )

    def read(self, arguments: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the flags' values by name.

        Raises UserError for an unknown flag (with the nearest known one) and for a missing required one.
        """
        known, unknown = self.parse_known_args(arguments)
        if unknown:
            flag = unknown[0].split("=")[0]
            hint = self._foreign_flag_hint(flag) or did_you_mean(
                flag, [*self._option_string_actions, *self.other_flags]
            )
            raise UserError(f"unknown argument {flag}{hint}")
        flags = vars(known)
        for name in self.required:
            if not flags[name]:
                raise UserError(f"--{name} is missing; --help lists the flags")
        return flags

    def _foreign_flag_hint(self, flag: str) -> str:
        """Return the counterpart here of a flag of other trainers, "" if this command has none."""
        hint = _FOREIGN_FLAGS.get(flag, "")
        known = all(name.rstrip(",") in self._option_string_actions for name in re.findall(r"--\w+", hint))
        return f"; {hint}" if hint and known else ""


def add_flags(
    parser: argparse.ArgumentParser, section: str, section_of: dict[str, str], without: Sequence[str] = ()
) -> None:
    """Add a flag for each option of a section of `Config` but `without`, and its name to `section_of`."""
    cls = typing.get_type_hints(Config)[section]
    group = parser.add_argument_group(section, cls.__doc__)
    for f in [f for f in fields(cls) if f.name not in without]:
        kind, optional = schema.option_type(cls, f.name)
        group.add_argument(
            f"--{f.name}",
            *(f"--{alias}" for alias in f.metadata["aliases"]),
            dest=f.name,
            default=argparse.SUPPRESS,
            help=help_text(f, optional).replace("%", "%%"),
            **_argument_type(kind),
        )
        section_of[f.name] = section
    if section == "concept":
        doc = Config.__dataclass_fields__["concepts"].metadata["doc"]
        group.add_argument("--concepts", nargs="+", default=argparse.SUPPRESS, metavar="YAML", help=doc)


def _argument_type(kind: Any) -> dict[str, Any]:
    """Return the arguments of `add_argument` for an option of type `kind`; `schema` converts the text."""
    if kind is bool:
        return {"nargs": "?", "const": "True", "metavar": "True|False"}
    if typing.get_origin(kind) is list:
        return {"nargs": "+", "metavar": "STR"}
    return {"metavar": kind.__name__.upper()}


def help_text(field: Field, optional: bool) -> str:
    text = field.metadata["doc"]
    choices = ", ".join(repr(c) for c in field.metadata["choices"] if c != "")
    if choices:
        text += f" [{choices}]"
    if optional or field.default is MISSING or field.default == "":
        return text
    return f"{text} (default: {field.default})"
