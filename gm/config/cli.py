"""Command line: flags generated from the fields of `Config`, and `run`, which turns errors into exit codes."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, NoReturn

from gm import config as configuration
from gm.config import Config, RunConfig, coming_from, hub_models, paths, schema
from gm.config.coming_from.program import Program
from gm.config.model import TextEncoderConfig
from gm.errors import UserError, did_you_mean

DEFAULT_CONFIG = "configs/training/sd_xl_base_finetune_textual_inversion.yaml"

_SWITCHES = {"infer_interval": "infer_during_train", "validation_loss_interval": "num_validation_samples"}

log = logging.getLogger("gm")

exit_hooks: list[Callable[[int], None]] = []  # called by `run` with the exit code
_flags_of: dict[str, str] = {}  # by option, the flags of another program that the user gave, for error messages

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
        """Return what a flag of other trainers is called here, "" if this command has nothing like it."""
        hint = _FOREIGN_FLAGS.get(flag, "")
        known = all(name.rstrip(",") in self._option_string_actions for name in re.findall(r"--\w+", hint))
        return f"; {hint}" if hint and known else ""


def parse(
    description: str,
    sections: Sequence[str],
    arguments: Sequence[str] | None = None,
    parameters_from: Callable[[str], dict[str, dict[str, Any]]] | None = None,
    config_for: Callable[[str], tuple[str, dict[str, Any]]] | None = None,
    programs: Sequence[Program] = (),
    without: Sequence[str] = (),
) -> Config:
    """Return the config for the command-line `arguments` (default: those of the process).

    `sections` names the sections of `Config` whose fields, but those in `without`, become flags. `parameters_from` adds
    the flag of that name and reads the generation parameters of the image given there; they override the YAML file and
    are overridden by the other flags. A command line of one of `programs` is translated: its options, and its defaults
    for those that it leaves out, override the YAML file; our flags may be mixed in. A `weight` that names a model of
    the Hub is replaced by its folder or file (`hub_models.locate`). Without --config, `config_for` returns the YAML
    file for the model in `weight`, and sections that override it. Raises UserError for an unknown flag (with the
    nearest known one), for an option that both kinds of flags set, and as `config.load` does.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    program = coming_from.recognize(arguments, programs)
    translated = coming_from.translate(program, arguments) if program else None
    _flags_of.clear()
    _flags_of.update(translated.sources if translated else {})
    parser = Parser(description)
    if translated:
        arguments = translated.remaining
        parser.other_flags = [f"--{name}" for name in translated.program.flags]
    if parameters_from:
        parser.add_argument(
            "--parameters_from",
            metavar="IMAGE",
            type=paths.expand,
            help="image whose generation parameters to use; the other flags override them",
        )
    parser.add_config(meaning="YAML file of options; without it, that of the family of --weight" if config_for else "")
    parser.set_defaults(config=None)
    section_of: dict[str, str] = {}
    for section in sections:
        add_flags(parser, section, section_of, without)
    _add_clip_skip(parser, section_of)
    values = parser.read(arguments)
    path = values.pop("config")
    image = values.pop("parameters_from", None)
    overrides: dict[str, Any] = parameters_from(image) if parameters_from and image else {}
    if "concepts" in values:
        overrides["concepts"] = values.pop("concepts")
    options = {f"{section_of[name]}.{name}": value for name, value in values.items()}
    if translated:
        coming_from.check_conflicts(translated, {option: f"--{option.split('.')[-1]}" for option in options})
        options = {**translated.options, **options}
    _check_rate(str(options.get("training.learning_rate", "")))
    for option, value in options.items():
        _set(overrides, option, value)
    if "weight" in overrides.get("run", {}):
        run = schema.merge(RunConfig, {"command line": overrides["run"]}, "run.")
        overrides["run"]["weight"] = hub_models.locate(run)
        if path is None and config_for:
            path, of_weight = config_for(overrides["run"]["weight"])
            overrides = merge_sections(of_weight, overrides)
    config = configuration.load(path or DEFAULT_CONFIG, overrides)
    for line in translated.notes if translated else ():
        log.info("%s", line)
    _check_intervals(values, config)
    return config


def _set(sections: dict[str, Any], option: str, value: Any) -> None:
    """Set `section.name`, or `section.section.name`, in nested sections."""
    *path, name = option.split(".")
    for section in path:
        sections = sections.setdefault(section, {})
    sections[name] = value


def merge_sections(sections: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `sections` with what `overrides` has in place of theirs, option by option."""
    merged = {**sections, **overrides}
    for name in sections.keys() & overrides.keys():
        if isinstance(sections[name], Mapping) and isinstance(overrides[name], Mapping):
            merged[name] = merge_sections(sections[name], overrides[name])
    return merged


def _check_rate(rate: str) -> None:
    if re.fullmatch(r"[^:,]+:\s*\d+\s*(,.*)?", rate):
        raise UserError(
            f"--learning_rate {rate!r} is a schedule as AUTOMATIC1111 writes it; give its first rate, and "
            "--lr_scheduler for its course"
        )


def _check_intervals(flags: Mapping[str, Any], config: Config) -> None:
    """Warn of an interval without its switch. Only of flags: a YAML file may hold one in case that the switch is on."""
    for interval, switch in _SWITCHES.items():
        if interval in flags and not getattr(config.training, switch):
            log.warning("--%s %s has no effect without --%s", interval, flags[interval], switch)


def run(main: Callable[[], None]) -> None:
    """Call `main` with the log of "gm" on standard output; exit with 2 and one line on standard error on a UserError.

    Ctrl-C ends the script without a traceback, with the exit code 130 of shells. `exit_hooks` are called at the end.
    """
    _flags_of.clear()
    log.setLevel(logging.INFO)
    log.handlers = [logging.StreamHandler(sys.stdout)]
    code = 0
    try:
        main()
    except UserError as error:
        print(f"error: {coming_from.name_flags(str(error), _flags_of)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        code = end.code
    for hook in exit_hooks:
        hook(code)
    if code:
        sys.exit(code)


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
            help=_help(f, optional).replace("%", "%%"),
            **_argument_type(kind),
        )
        section_of[f.name] = section
    if section == "concept":
        doc = Config.__dataclass_fields__["concepts"].metadata["doc"]
        group.add_argument("--concepts", nargs="+", default=argparse.SUPPRESS, metavar="YAML", help=doc)


def _add_clip_skip(parser: argparse.ArgumentParser, section_of: dict[str, str]) -> None:
    """Add the flag of the only option of a model that is a matter of how it is used: no file says it."""
    clip_skip = TextEncoderConfig.__dataclass_fields__["clip_skip"]
    parser.add_argument("--clip_skip", default=argparse.SUPPRESS, metavar="INT", help=_help(clip_skip, False))
    section_of["clip_skip"] = "model.text_encoder_1"


def _argument_type(kind: Any) -> dict[str, Any]:
    """Return the arguments of `add_argument` for an option of type `kind`; `schema` converts the text."""
    if kind is bool:
        return {"nargs": "?", "const": "True", "metavar": "True|False"}
    if typing.get_origin(kind) is list:
        return {"nargs": "+", "metavar": "STR"}
    return {"metavar": kind.__name__.upper()}


def _help(field: Field, optional: bool) -> str:
    text = field.metadata["doc"]
    choices = ", ".join(repr(c) for c in field.metadata["choices"] if c != "")
    if choices:
        text += f" [{choices}]"
    if optional or field.default is MISSING or field.default == "":
        return text
    return f"{text} (default: {field.default})"
