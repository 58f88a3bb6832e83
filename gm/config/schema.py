"""What an option is: a dataclass field with a line of documentation and limits, filled from YAML and overrides."""

from __future__ import annotations

import types
import typing
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from gm.errors import UserError, did_you_mean

Schema = TypeVar("Schema")


def option(
    default: Any,
    doc: str,
    *,
    choices: tuple = (),
    minimum: float | None = None,
    maximum: float | None = None,
    step: int = 1,
    aliases: tuple[str, ...] = (),
) -> Any:
    """Declare one option; `minimum` and `maximum` are inclusive, `step` asks for a multiple, `choices` is all there is.

    `aliases` are the names that users of other trainers know its flag by.
    """
    metadata = {
        "doc": doc,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "step": step,
        "aliases": aliases,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def merge(schema: type[Schema], path: str | Path | None, overrides: dict[str, Any], source: str = "") -> Schema:
    """Return a `schema` of defaults < the YAML file at `path` < `overrides`, its limits checked.

    What is wrong with `overrides` is said to be of `source`, without it of the command line.

    Raises UserError for a file that is not there or not YAML, an unknown key (with the nearest known one), a wrong
    type, or a value outside its limits.
    """
    tree = OmegaConf.structured(schema)
    if path is not None:
        tree = _merge(tree, _read_yaml(schema, Path(path)), str(path))
    tree = _merge(tree, OmegaConf.create(_literal(overrides)), source or "command line")
    try:
        found = OmegaConf.to_object(tree)
    except MissingMandatoryValue as error:
        raise UserError(f"'???' is no value: {error.full_key}") from error
    assert isinstance(found, schema)
    check_limits(found, f"{source}: " if source else "")
    return found


def to_yaml(values: dict[str, Any]) -> str:
    """Return nested `values` as YAML that `merge` reads back to the same."""
    return OmegaConf.to_yaml(OmegaConf.create(_literal(values)))


def option_type(section: type, name: str) -> tuple[Any, bool]:
    """Return (type, optional) of a dataclass field: `int | None` gives (int, True)."""
    hint = typing.get_type_hints(section)[name]
    if isinstance(hint, types.UnionType):
        return next(t for t in typing.get_args(hint) if t is not type(None)), True
    return hint, False


def check_limits(section: Any, prefix: str = "") -> None:
    """Raise UserError for the first option of `section`, or of a section in it, that is outside its limits."""
    for f in fields(section):
        value, name = getattr(section, f.name), prefix + f.name
        if is_dataclass(value):
            check_limits(value, f"{name}.")
            continue
        choices, minimum, maximum, step = (f.metadata.get(k) for k in ("choices", "minimum", "maximum", "step"))
        if value is None:
            continue
        if choices and value not in choices:
            words = ", ".join(repr(c) for c in choices if c != "")
            raise UserError(f"{name} is {value!r}; it may be {words}{did_you_mean(str(value), map(str, choices))}")
        if minimum is not None and not value >= minimum:
            raise UserError(f"{name} is {value}; it must be at least {minimum}")
        if maximum is not None and not value <= maximum:
            raise UserError(f"{name} is {value}; it must be at most {maximum}")
        if step != 1 and value % step:
            raise UserError(f"{name} is {value}; it must be a multiple of {step}")


def load_mappings(given: str) -> list[Any]:
    """Return what a YAML mapping `{a: 1}`, or the YAML file of this name with a list, holds; UserError if neither."""
    inline = given.lstrip().startswith("{")
    if not inline and not Path(given).is_file():
        raise UserError(
            f"there is not a file {given}; give a YAML file with a list of mappings, or one {{name: value}}"
        )
    try:
        found = OmegaConf.to_container(OmegaConf.create(given) if inline else OmegaConf.load(given))
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise UserError(f"{given} is not YAML: {' '.join(str(error).split())}") from error
    if not inline and not isinstance(found, list):
        raise UserError(f"{given} must hold a list of mappings, one a line that begins with -")
    return found if isinstance(found, list) else [found]


def _read_yaml(schema: type, path: Path) -> DictConfig:
    if not path.is_file():
        raise UserError(f"no config file {path}; configs/training/ holds the shipped ones")
    try:
        tree = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path} must hold the sections {', '.join(f.name for f in fields(schema))}")
    return tree


def _merge(tree: Any, extra: Any, source: str) -> Any:
    try:
        return OmegaConf.merge(tree, extra)
    except ConfigKeyError as error:
        key = str(error.full_key)
        known = [f.name for f in fields(error.object_type)] if is_dataclass(error.object_type) else []
        raise UserError(f"{source}: unknown option {key}{did_you_mean(key.split('.')[-1], known)}") from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{source}: {error.full_key}: {reason}" if error.full_key else f"{source}: {reason}") from error


def _literal(tree: Any) -> Any:
    """Escape `${`, which OmegaConf would take for a reference: a prompt may hold anything."""
    if isinstance(tree, dict):
        return {key: _literal(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_literal(value) for value in tree]
    return tree.replace("${", "\\${") if isinstance(tree, str) else tree
