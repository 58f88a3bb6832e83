"""Command line: flags generated from the fields of `Config`, and `run`, which turns errors into exit codes."""

from __future__ import annotations

import argparse
import logging
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn

from gm import config as configuration
from gm.config import Config, schema
from gm.errors import UserError, did_you_mean

DEFAULT_CONFIG = "configs/training/sd_xl_base_finetune_textual_inversion.yaml"

exit_hooks: list[Callable[[int], None]] = []  # called by `run` with the exit code

_PROJECT = Path(__file__).resolve().parents[2]


class Parser(argparse.ArgumentParser):
    """Argument parser that raises a UserError of one line where argparse would print its usage and exit."""

    def __init__(self, description: str, required: Sequence[str] = ()) -> None:
        super().__init__(description=description, allow_abbrev=False)
        self.required = required

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")

    def add_config(self, default: str = DEFAULT_CONFIG, meaning: str = "YAML file of options") -> None:
        """Add the flag --config. A shipped config is found from any folder."""
        self.add_argument("--config", type=_config_path, default=default, help=f"{meaning} (default: {default})")

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
            raise UserError(f"unknown argument {flag}{did_you_mean(flag, self._option_string_actions)}")
        flags = vars(known)
        for name in self.required:
            if not flags[name]:
                raise UserError(f"--{name} is missing; --help lists the flags")
        return flags


def parse(
    description: str,
    sections: Sequence[str],
    arguments: Sequence[str] | None = None,
    parameters_from: Callable[[str], dict[str, dict[str, Any]]] | None = None,
) -> Config:
    """Return the config for the command-line `arguments` (default: those of the process).

    `sections` names the sections of `Config` whose fields become flags. `parameters_from` adds the flag of that name
    and reads the generation parameters of the image given there; they override the YAML file and are overridden by
    the other flags. Raises UserError for an unknown flag (with the nearest known one) and as `config.load` does.
    """
    parser = Parser(description)
    if parameters_from:
        parser.add_argument(
            "--parameters_from",
            metavar="IMAGE",
            help="image whose generation parameters to use; the other flags override them",
        )
    parser.add_config()
    section_of: dict[str, str] = {}
    for section in sections:
        _add_flags(parser, section, section_of)
    values = parser.read(arguments)
    path = values.pop("config")
    image = values.pop("parameters_from", None)
    overrides: dict[str, Any] = parameters_from(image) if parameters_from and image else {}
    if "concepts" in values:
        overrides["concepts"] = values.pop("concepts")
    for name, value in values.items():
        overrides.setdefault(section_of[name], {})[name] = value
    return configuration.load(path, overrides)


def run(main: Callable[[], None]) -> None:
    """Call `main` with the log of "gm" on standard output; exit with 2 and one line on standard error on a UserError.

    Ctrl-C ends the script without a traceback, with the exit code 130 of shells. `exit_hooks` are called at the end.
    """
    log = logging.getLogger("gm")
    log.setLevel(logging.INFO)
    log.handlers = [logging.StreamHandler(sys.stdout)]
    code = 0
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
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


def _config_path(path: str) -> str:
    """Return `path`, or the file of that name in the project's folder if only that one exists."""
    shipped = _PROJECT / path
    return path if Path(path).exists() or not shipped.is_file() else str(shipped)


def _add_flags(parser: Parser, section: str, section_of: dict[str, str]) -> None:
    cls = typing.get_type_hints(Config)[section]
    group = parser.add_argument_group(section, cls.__doc__)
    for f in fields(cls):
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
