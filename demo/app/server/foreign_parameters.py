"""Generation parameters that other programs write, as far as this program has the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gm.config.schema import MAX_SEED
from gm.diffusion import samplers

_MAX_TEXT = 200  # characters of a value in a note


@dataclass
class ForeignParameters:
    """Options by name, and `unused`: what else the program wrote, "name: value" each."""

    program: str
    options: dict[str, Any] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def note(self, name: str, value: object) -> None:
        """Note something that is not used."""
        text = str(value)
        self.unused.append(f"{name}: {text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + '…'}")

    def set_int(self, option: str, name: str, value: object) -> None:
        """Set an option to a whole number, or note that it is none."""
        if isinstance(value, str) and re.fullmatch(r"\d{1,20}", value.strip()):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SEED:
            self.options[option] = value
        else:
            self.note(name, value)

    def set_float(self, option: str, name: str, value: object) -> None:
        """Set an option to a number, or note that it is none."""
        try:
            if isinstance(value, bool) or not isinstance(value, (int, float, str)):
                raise ValueError
            self.options[option] = float(value)
        except (ValueError, OverflowError):
            self.note(name, value)

    def set_schedule(self, name: str, value: object, names: Mapping[str, str]) -> None:
        """Set the schedule by the program's name of it, in lower case in `names`, or note that it is unknown."""
        schedule = names.get(str(value).lower())
        if schedule is None:
            self.note(name, value)
        else:
            self.options["schedule"] = schedule

    def set_sampler(self, name: str, value: object) -> bool:
        """Set the sampler by its title or name, in any case; return whether it is known."""
        names = {title.lower(): sampler for sampler, title in samplers.TITLES.items()}
        names |= {sampler: sampler for sampler in samplers.SAMPLERS}
        sampler = names.get(str(value).lower())
        if sampler is None:
            return False
        self.options["sampler"] = sampler
        return True
