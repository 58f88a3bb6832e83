"""Command-line flags generated from the config's fields, and the one way a script ends on a mistake."""

from __future__ import annotations

import argparse
import logging
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any, NoReturn

from gm import config as configuration
from gm.config import Config, schema
from gm.errors import UserError, suggestion

DEFAULT_CONFIG = "configs/training/sd_xl_base_finetune_textual_inversion.yaml"


exit_hooks: list[Callable[[int], None]] = []


class Parser(argparse.ArgumentParser):
    """Raises a UserError of one line where argparse would print its usage and exit."""

    def __init__(self, description: str, required: Sequence[str] = ()) -> None:
        super().__init__(description=description, allow_abbrev=False)
        self.required = required

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")

    def add_overwrite(self) -> None:
        """Add the flag that lets a script replace what is there."""
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

        UserError for one that is unknown, with the nearest that is known, or is `required` and missing.
        """
        known, unknown = self.parse_known_args(arguments)
        if unknown:
            flag = unknown[0].split("=")[0]
            raise UserError(f"unknown argument {flag}{suggestion(flag, self._option_string_actions)}")
        flags = vars(known)
        for name in self.required:
            if not flags[name]:
                raise UserError(f"--{name} is missing; --help lists the flags")
        return flags


def parse(
    description: str,
    sections: Sequence[str],
    arguments: Sequence[str] | None = None,
    recipe: Callable[[str], dict[str, dict[str, Any]]] | None = None,
) -> Config:
    """Return the config that `arguments` (default: the process's own) ask for.

    `sections` names the parts of `Config` whose fields become flags. `recipe` reads the options of an image, which
    stand above those of the YAML file and below the other flags, and adds the flag of that name. Raises UserError for
    a flag that is not one of them (the nearest is suggested) and for every mistake that `config.load` finds.
    """
    parser = Parser(description)
    if recipe:
        parser.add_argument("--recipe", help="image drawn by this toolkit to draw once more; other flags change it")
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="YAML file of options (default: %(default)s)")
    owner: dict[str, str] = {}
    for section in sections:
        _add_flags(parser, section, owner)
    values = parser.read(arguments)
    path, image = values.pop("config"), values.pop("recipe", None)
    overrides: dict[str, Any] = recipe(image) if recipe and image else {}
    if "concepts" in values:
        overrides["concepts"] = values.pop("concepts")
    for name, value in values.items():
        overrides.setdefault(owner[name], {})[name] = value
    return configuration.load(path, overrides)


def run(main: Callable[[], None]) -> None:
    """Call `main`, showing the toolkit's log; a UserError becomes one line on standard error and exit code 2.

    Ctrl-C is no mistake: it ends the script without a traceback, with the exit code that shells give it. What is in
    `exit_hooks` is then called with the exit code.
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
    for ending in exit_hooks:
        ending(code)
    if code:
        sys.exit(code)


def _add_flags(parser: Parser, section: str, owner: dict[str, str]) -> None:
    cls = typing.get_type_hints(Config)[section]
    group = parser.add_argument_group(section, cls.__doc__)
    for f in fields(cls):
        kind, optional = schema.option_type(cls, f.name)
        default = f.default if f.default is not MISSING else []
        choices = ", ".join(repr(c) for c in f.metadata["choices"] if c != "")
        text = f.metadata["doc"] + (f" [{choices}]" if choices else "") + _default_text(default, optional)
        extra: dict[str, Any] = {"nargs": "?", "const": "True"} if kind is bool else {}
        if typing.get_origin(kind) is list:
            extra = {"nargs": "+"}
        name = kind.__name__ if isinstance(kind, type) and extra.get("nargs") != "+" else "str"
        group.add_argument(
            *(f"--{name}" for name in (f.name, *f.metadata["aliases"])),
            dest=f.name,
            default=argparse.SUPPRESS,
            metavar="True|False" if kind is bool else name.upper(),
            help=text.replace("%", "%%"),
            **extra,
        )
        owner[f.name] = section
    if section == "concept":
        doc = Config.__dataclass_fields__["concepts"].metadata["doc"]
        group.add_argument("--concepts", nargs="+", default=argparse.SUPPRESS, metavar="YAML", help=doc)


def _default_text(default: Any, optional: bool) -> str:
    return "" if optional or default in ("", []) else f" (default: {default})"
