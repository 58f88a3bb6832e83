"""Options: dataclass fields with a line of documentation and limits, filled from YAML files and overrides."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from gm.config import paths, yaml_files
from gm.errors import UserError, did_you_mean, shorten

Schema = TypeVar("Schema")
MAX_SEED = 2**64 - 1  # as in ComfyUI


def option(
    default: Any,
    doc: str,
    *,
    choices: tuple = (),
    minimum: float | None = None,
    maximum: float | None = None,
    step: int = 1,
    aliases: tuple[str, ...] = (),
    path: str = "",
) -> Any:
    """Declare one option.

    `minimum` and `maximum` are inclusive, and those of each element of a tuple; every number has both, so that nothing
    is allocated for a senseless one. The value must be a multiple of `step` and one of `choices`. `aliases` are names
    of the flag in other trainers. `path` is "path" or "shipped" for a path, or a list of paths, whose `~` is expanded;
    "shipped" looks for a relative one in the project's folder, too.
    """
    metadata = {
        "doc": doc,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "step": step,
        "aliases": aliases,
        "path": path,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Section:
    """Options whose paths are resolved and checked, wherever their values come from; UserError as of `paths.check`."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.metadata.get("path"):
                paths.check(getattr(self, f.name), f"--{f.name}")
                object.__setattr__(self, f.name, paths.resolve(getattr(self, f.name), f.metadata["path"]))


def merge(schema: type[Schema], layers: Mapping[str, Mapping[str, Any]], prefix: str = "") -> Schema:
    """Return a `schema` of its defaults, overridden by one layer of values after the other, with its limits checked.

    The keys of `layers` name their sources in messages, and `prefix` begins those about limits. Text is never
    interpolated. Raises UserError for an unknown key (with the nearest known one), a wrong type, or a value outside its
    limits.
    """
    tree = _tree(typing.cast(type, schema))
    for source, values in layers.items():
        tree = _merge(tree, _check_text(schema, values, source), source)
    try:
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise _user_error(error, " or ".join(layers)) from error
    assert isinstance(config, schema)
    check_limits(config, prefix)
    return config


def read_yaml(schema: type, path: str | Path) -> dict[str, Any]:
    """Return the sections in a YAML file for `schema`; a shipped file is found from any folder."""
    file = Path(paths.find_shipped(path))
    if not file.is_file():
        raise UserError(f"{file} is not a file; the shipped configs are in configs/training/")
    tree = yaml_files.read(file)
    if tree is not None and not isinstance(tree, dict):
        raise UserError(f"{file} must hold the sections {', '.join(f.name for f in fields(schema))}")
    return {name: values for name, values in (tree or {}).items() if values is not None}  # None: an empty section


def option_type(section: type, name: str) -> tuple[Any, bool]:
    """Return (type, optional) of a dataclass field: `int | None` gives (int, True)."""
    hint = _hints(section)[name]
    if isinstance(hint, types.UnionType):
        return next(t for t in typing.get_args(hint) if t is not type(None)), True
    return hint, False


@cache
def _hints(section: type) -> dict[str, Any]:
    return typing.get_type_hints(section)


def check_limits(section: Any, prefix: str = "") -> None:
    """Raise UserError for the first option of `section`, or of a section in it, that is outside its limits."""
    for f in fields(section):
        value, name = getattr(section, f.name), prefix + f.name
        if is_dataclass(value):
            check_limits(value, f"{name}.")
            continue
        if value is not None:
            _check_value(name, value, f.metadata)


def load_mappings(source: str) -> list[Any]:
    """Return the mappings of `source`: an inline YAML mapping `{a: 1}`, or a YAML file with a list of them."""
    inline = source.lstrip().startswith("{")
    if inline:
        return [yaml_files.parse(source, source)]
    file = Path(paths.expand(source))
    if not file.is_file():
        raise UserError(f"{source} is not a file; give a YAML file with a list of mappings, or one {{name: value}}")
    values = yaml_files.read(file)
    if not isinstance(values, list):
        raise UserError(f"{source} must hold a list of mappings, each on a line that starts with -")
    return values


def _check_value(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    if isinstance(value, tuple):
        for element in value:
            _check_value(name, element, limits)
        return
    choices = limits["choices"]
    minimum = limits["minimum"]
    maximum = limits["maximum"]
    step = limits["step"]
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{name} is not a number (nan); give one")
    if choices and value not in choices:
        listed = ", ".join(repr(c) for c in choices if c != "")
        raise UserError(f"{name} is {value!r}; it may be {listed}{did_you_mean(str(value), map(str, choices))}")
    if minimum is not None and not value >= minimum:
        raise UserError(f"{name} is {value}; it must be at least {minimum}")
    if maximum is not None and not value <= maximum:
        raise UserError(f"{name} is {value}; it must be at most {maximum}")
    if step != 1 and value % step:
        raise UserError(f"{name} is {value}; it must be a multiple of {step}")


def _check_text(schema: type, values: Mapping[str, Any], source: str, prefix: str = "") -> dict[str, Any]:
    """Return `values` with a text in the place of a list as its only element.

    Raises UserError for text that OmegaConf would not take literally: in the place of a section it is resolved in spite
    of its escapes, and `???` stands for a missing value, whose default would be used.
    """
    checked = dict(values)
    hints = _hints(schema)
    for name in [name for name in hints if name in checked]:
        value, hint = checked[name], hints[name]
        texts = value if isinstance(value, (list, tuple)) else [value]
        if "???" in texts:
            raise UserError(f"{source}: '???' is not a value: {prefix}{name}")
        if is_dataclass(hint):
            if isinstance(value, str):
                text = shorten(repr(value), 60)
                raise UserError(f"{source}: {prefix}{name} is {text}; it is a section of options and values")
            if isinstance(value, Mapping):
                checked[name] = _check_text(typing.cast(type, hint), value, source, f"{prefix}{name}.")
        elif typing.get_origin(hint) in (list, tuple) and isinstance(value, str):
            checked[name] = [value]
    return checked


@cache  # building it takes half of the time of a merge, which copies it
def _tree(schema: type) -> Any:
    return OmegaConf.structured(schema)


def _merge(tree: Any, values: dict[str, Any], source: str) -> Any:
    try:
        return OmegaConf.merge(tree, OmegaConf.create(_literal(values)))
    except RecursionError as error:
        raise UserError(f"{source} is nested too deeply for options") from error
    except ConfigKeyError as error:
        key = str(error.full_key)
        known = [f.name for f in fields(error.object_type)] if is_dataclass(error.object_type) else []
        raise UserError(f"{source}: unknown option {key}{did_you_mean(key.split('.')[-1], known)}") from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:  # TypeError of a mapping in the place of a list
        raise _user_error(error, source) from error


def _user_error(error: Exception, source: str) -> UserError:
    key = getattr(error, "full_key", None)
    reason = str(error).partition("\n")[0].replace("\\${", "${")
    return UserError(f"{source}: {key}: {reason}" if key else f"{source}: {reason}")


def _literal(tree: Any) -> Any:
    """Escape `${`, which OmegaConf would resolve as a reference: text may hold any characters.

    Backslashes in front of it are doubled, as OmegaConf's grammar requires it, so that `\\${` does not undo the escape.
    """
    if isinstance(tree, dict):
        return {key: _literal(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_literal(value) for value in tree]
    if not isinstance(tree, str):
        return tree
    return re.sub(r"(\\*)\$\{", lambda match: f"{match[1] * 2}\\${{", tree)
