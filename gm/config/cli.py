"""Command line: `parse` returns the config of a command, and `run` turns errors into exit codes."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gm import config as configuration
from gm.config import Config, RunConfig, coming_from, hub_models, paths, schema
from gm.config.coming_from import Translated
from gm.config.coming_from.program import Program
from gm.config.networks import TextEncoderConfig
from gm.config.parser import DEFAULT_CONFIG, Parser, add_flags, help_text
from gm.errors import UserError

_SWITCHES = {"infer_interval": "infer_during_train", "validation_loss_interval": "num_validation_samples"}

log = logging.getLogger("gm")

exit_hooks: list[Callable[[int], None]] = []  # called by `run` with the exit code
_flags_of: dict[str, str] = {}  # by option, the flags of another program that the user gave, for error messages


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
    parser, section_of = _option_parser(description, sections, without, parameters_from is not None, bool(config_for))
    if translated:
        arguments = translated.remaining
        parser.other_flags = [f"--{name}" for name in translated.program.flags]
    values = parser.read(arguments)
    path = values.pop("config")
    image = values.pop("parameters_from", None)
    overrides: dict[str, Any] = parameters_from(image) if parameters_from and image else {}
    _override(overrides, values, section_of, translated)
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


def _option_parser(
    description: str, sections: Sequence[str], without: Sequence[str], from_image: bool, config_by_weight: bool
) -> tuple[Parser, dict[str, str]]:
    """Return the parser of `parse`, and the section of each option by the name of its flag."""
    parser = Parser(description)
    if from_image:
        parser.add_argument(
            "--parameters_from",
            metavar="IMAGE",
            type=paths.expand,
            help="image whose generation parameters to use; the other flags override them",
        )
    parser.add_config(
        meaning="YAML file of options; without it, that of the family of --weight" if config_by_weight else ""
    )
    parser.set_defaults(config=None)
    section_of: dict[str, str] = {}
    for section in sections:
        add_flags(parser, section, section_of, without)
    _add_clip_skip(parser, section_of)
    return parser, section_of


def _add_clip_skip(parser: argparse.ArgumentParser, section_of: dict[str, str]) -> None:
    """Add the flag of the only option of a model that is a matter of how it is used: no file says it."""
    clip_skip = TextEncoderConfig.__dataclass_fields__["clip_skip"]
    parser.add_argument("--clip_skip", default=argparse.SUPPRESS, metavar="INT", help=help_text(clip_skip, False))
    section_of["clip_skip"] = "model.text_encoder_1"


def _override(
    overrides: dict[str, Any], flags: dict[str, Any], section_of: Mapping[str, str], translated: Translated | None
) -> None:
    """Set the options of the translated command and of our `flags` in `overrides`, whose sections are nested."""
    if "concepts" in flags:
        overrides["concepts"] = flags.pop("concepts")
    options = {f"{section_of[name]}.{name}": value for name, value in flags.items()}
    if translated:
        coming_from.check_conflicts(translated, {option: f"--{option.split('.')[-1]}" for option in options})
        options = {**translated.options, **options}
    _check_rate(str(options.get("training.learning_rate", "")))
    for option, value in options.items():
        _set(overrides, option, value)


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
