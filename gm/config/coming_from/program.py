"""Commands of other programs as data: their flags, and the options here that they set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gm.errors import UserError

TRUE = ("true", "yes", "y", "t", "1")
FALSE = ("false", "no", "n", "f", "0")


@dataclass(frozen=True)
class Flag:
    """A flag of another program.

    option: the option here, `section.name` or `model.schedule.name`; "" has none
    default: the value there, None if it has none
    switch: a bare flag means true
    updates: it counts optimizer updates, of which each is `gradient_accumulation_steps` of the steps here
    values: the value here for each value there; others are errors. Without it a value stays as it is
    unused: why the flag has no effect here
    refused: what to do instead of the flag, which would change the result and has no counterpart here
    required: the program refuses to start without it
    several: it takes several values
    aliases: its other names, with their dashes
    """

    option: str = ""
    default: Any = None
    switch: bool = False
    updates: bool = False
    values: Mapping[Any, Any] = field(default_factory=dict)
    unused: str = ""
    refused: str = ""
    required: bool = False
    several: bool = False
    aliases: tuple[str, ...] = ()


@dataclass
class Translation:
    """Translation of a command in progress: its flags, and the options and notes that follow from them.

    flags: values by the name of the flag there, only of flags on the command line
    values: the same with the program's defaults for the others
    options: value by `section.name`; sources: the flag on the command line that set an option; notes: lines to log
    """

    flags: dict[str, Any]
    values: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def set(self, option: str, value: Any, flag: str = "") -> None:
        """Set an option, because of the `flag` if the user gave it."""
        self.options[option] = value
        if flag in self.flags:
            self.sources[option] = flag

    def integer(self, name: str) -> int:
        """Return the whole number that a flag has; UserError for another value."""
        try:
            return int(self.values[name])
        except (TypeError, ValueError) as error:
            raise UserError(f"--{name} is {self.values[name]!r}; give a whole number") from error

    def note_unused(self, name: str, reason: str) -> None:
        """Log that a flag has no effect, if the user gave it."""
        if name in self.flags:
            self.notes.append(f"--{name} has no effect: {reason}")


def _nothing(translation: Translation) -> None:
    pass


@dataclass(frozen=True)
class Program:
    """A command of another program.

    name: in messages
    signatures: sets of flags, one of which a command line must contain to be this program's
    not_with: flags that make it another program's
    flags: by name, without dashes
    fixed: options that the program has no flags for, with its values
    finish: sets the options that depend on several flags
    steps: flag with the number of passes per update
    """

    name: str
    signatures: Sequence[frozenset[str]]
    flags: Mapping[str, Flag]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[Translation], None] = _nothing
    not_with: frozenset[str] = frozenset()
    steps: str = "gradient_accumulation_steps"
