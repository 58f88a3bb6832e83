"""YAML files of options: scalars stay text, which the type of their option converts.

Not OmegaConf's own loader, whose `${…}` would insert environment variables and other values, and for which a prompt
`no` is False and a token `012` is 10.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from gm.config import paths
from gm.errors import UserError, shorten

_MAX_DEPTH = 50  # of nested values; PyYAML recurses for each, and Python's limit may have been raised


class _Loader(yaml.SafeLoader):
    """Safe loader without dates, numbers and booleans, and with unique keys."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # not those of SafeLoader
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise RecursionError
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Safe dumper that keeps every character of a text."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])
_Loader.add_implicit_resolver(  # of numbers only these, which Python writes differently
    "tag:yaml.org,2002:float", re.compile(r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"), list("-+.")
)


def parse(text: str, source: str) -> Any:
    """Return the values of YAML `text`; UserError, naming the `source`, if it is not YAML."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:  # some of `!!bool maybe`
        raise UserError(f"{source} is not YAML: {shorten(error, 300)}") from error
    except RecursionError as error:
        raise UserError(f"{source} is nested too deeply for options") from error


def read(path: Path) -> Any:
    """Return the values of a YAML file; UserError if it cannot be read or is not YAML."""
    paths.check_regular(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not YAML: it is not UTF-8 text; save it with that encoding") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return parse(text, str(path))


def dump(values: dict[str, Any]) -> str:
    """Return nested `values` as YAML that `parse` reads back, numbers and booleans as text."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes these line breaks as they are, and reads them back as spaces; in double quotes it escapes them.
    style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
