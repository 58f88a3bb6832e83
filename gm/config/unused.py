"""Options that have no effect because of another option."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gm.config import Config


@dataclass(frozen=True)
class Rule:
    """`options` of a section have an effect only where `holds`; `needs` says it after "without"."""

    section: str
    options: tuple[str, ...]
    needs: str
    holds: Callable[[Config], bool]


def messages(config: Config, rules: Sequence[Rule]) -> Iterator[str]:
    """Yield a sentence for every option that differs from its default and has no effect."""
    for rule in rules:
        if rule.holds(config):
            continue
        section = getattr(config, rule.section)
        default = type(section)()
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if field.name in rule.options and value != getattr(default, field.name):
                text = " ".join(map(str, value)) if isinstance(value, list) else value
                yield f"--{field.name} {text} has no effect without {rule.needs}"
