"""Command lines of other programs, recognized by their flags and translated into the options here.

A module for each program holds its flags as data. `docs/coming_from.md` shows the tables to users.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from gm.config.coming_from import diffusers, invokeai, kohya, mindone, original
from gm.config.coming_from.program import FALSE, TRUE, Flag, Program, Translation
from gm.config.training import LEARNING_RATES
from gm.errors import UserError

TRAINING: tuple[Program, ...] = (
    kohya.TEXTUAL_INVERSION,
    mindone.TEXTUAL_INVERSION,
    original.TEXTUAL_INVERSION,
    invokeai.TEXTUAL_INVERSION,
    diffusers.TEXTUAL_INVERSION,
)
SAMPLING: tuple[Program, ...] = (original.TXT2IMG, invokeai.DREAM)

_WEIGHT_DECAY, _LEARNING_RATE = "training.weight_decay", "training.learning_rate"
_WIDTH = 110  # characters of a line of options in the log


@dataclass(frozen=True)
class Translated:
    """A command line of another program in the options here.

    options: value by `section.name`; sources: the flag that the user gave for an option, "" for a default there
    remaining: the arguments that are not the program's
    notes: lines to log, the first says which program it is
    """

    program: Program
    options: dict[str, Any]
    sources: dict[str, str]
    remaining: list[str]
    notes: list[str]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def recognize(arguments: Sequence[str], programs: Sequence[Program]) -> Program | None:
    """Return the program whose command line `arguments` are, None if they are this toolkit's."""
    flags = {argument.split("=")[0] for argument in arguments if argument.startswith("-")}
    for program in programs:
        if program.not_with.isdisjoint(flags) and any(signature <= flags for signature in program.signatures):
            return program
    return None


def translate(program: Program, arguments: Sequence[str]) -> Translated:
    """Return the command line of `program` in the options here.

    Raises UserError for a missing flag that the program requires, and for values that it has no translation of.
    """
    values, remaining = _parse(program, arguments)
    for name, flag in program.flags.items():
        if flag.required and not values.get(name):
            raise UserError(f"--{name} is missing; {program.name} needs it")
    defaults = {name: flag.default for name, flag in program.flags.items()}
    translation = Translation(values, {**defaults, **values})
    translation.options.update(program.fixed)
    for name, flag in program.flags.items():
        _apply(program, translation, name, flag)
    program.finish(translation)
    if "--optimizer=direction" in "=".join(remaining):
        _leave_out_defaults_of_adamw(translation)
    lines = [f"the command is that of {program.name}; its options here, with its defaults (docs/coming_from.md):"]
    lines += [f"  {line}" for line in _table(translation)]
    lines += [f"  {note}" for note in translation.notes]
    return Translated(program, translation.options, translation.sources, remaining, lines)


def _leave_out_defaults_of_adamw(translation: Translation) -> None:
    """Leave out what optimizer direction has no use for, where the user did not ask for it."""
    if _WEIGHT_DECAY not in translation.sources:
        translation.options.pop(_WEIGHT_DECAY, None)  # it fixes the norms
    if _LEARNING_RATE not in translation.sources:
        translation.options[_LEARNING_RATE] = LEARNING_RATES["direction"]


def check_conflicts(translated: Translated, flags: Mapping[str, str]) -> None:
    """Raise UserError if the user gave an option both as the program's flag and as ours.

    `flags` are ours, by the option that they set, as `section.name`.
    """
    for option, flag in flags.items():
        source = translated.sources.get(option)
        if source is not None:
            raise UserError(
                f"--{source} of {translated.program.name} and {flag} both set {option.split('.')[-1]}; give one of them"
            )


def _parse(program: Program, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of the program's flags that are in `arguments`, and the other arguments."""
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name, flag in program.flags.items():
        shape: dict[str, Any] = {"nargs": "?", "const": "true"} if flag.switch else {}
        if flag.several:
            shape = {"nargs": "+"}
        parser.add_argument(f"--{name}", *flag.aliases, dest=name, **shape)
    known, remaining = parser.parse_known_args(list(arguments))
    values = vars(known)
    for name in values:
        if program.flags[name].switch:
            values[name] = _boolean(name, values[name])
    return values, remaining


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in TRUE + FALSE:
        raise UserError(f"--{name} is {text!r}; it is True or False, or stands alone")
    return text.lower() in TRUE


def _apply(program: Program, translation: Translation, name: str, flag: Flag) -> None:
    """Set the option of a flag."""
    value = translation.values[name]
    if flag.refused and name in translation.flags and value not in (flag.default, "0", "0.0"):
        raise UserError(f"--{name} of {program.name} has no counterpart here; {flag.refused}")
    if flag.unused and name in translation.flags and value != flag.default:
        translation.note_unused(name, flag.unused)
    if not flag.option or value is None:
        return
    if flag.values and name in translation.flags:
        if value not in flag.values:
            raise UserError(f"--{name} is {value!r}; it may be {', '.join(map(repr, flag.values))}")
        value = flag.values[value]
    if flag.updates:
        value = translation.integer(name) * translation.integer(program.steps)
    translation.set(flag.option, value, name)


def _table(translation: Translation) -> list[str]:
    """Return a line for each flag that the user gave and that changes name or value, then all the other options."""
    changed: list[str] = []
    same: list[str] = []
    for option, value in translation.options.items():
        name = option.split(".")[-1]
        source = translation.sources.get(option, "")
        text = shlex.join(map(str, value)) if isinstance(value, (list, tuple)) else shlex.quote(str(value))
        ours = f"{option}: {text}" if option.startswith(("sampling.", "model.")) else f"--{name} {text}"
        typed = str(translation.flags[source]) if source else ""
        if source and (source != name or shlex.quote(typed) != text):
            changed.append(f"--{source} {typed} → {ours}")
        else:
            same.append(ours)
    return [*changed, *_joined(same)]


def _joined(parts: Sequence[str]) -> list[str]:
    """Return as few lines as possible of the whole `parts`."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) < _WIDTH:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return lines


def name_flags(message: str, sources: Mapping[str, str]) -> str:
    """Return an error message with the flags that the user gave beside the options here that it names."""
    for option, flag in sources.items():
        name = option.split(".")[-1]
        if flag != name:
            message = re.sub(rf"(?<![\w-])(--{name}|{re.escape(option)})(?!\w)", rf"--{flag} (here \1)", message)
    return message
