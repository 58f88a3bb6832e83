"""Markers of tests, derived from the names that a test, its fixtures and their helpers in tests/ use."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

# A test gets a marker if it uses one of the names: modules that it imports, functions that it calls, its fixtures.
NAMES = {
    "browser": {"selenium"},
    "reference": {
        "torch",
        "diffusers",
        "transformers",
        "k_diffusion",
        "prodigyopt",
        "clip",
        "tests.reference.case",
        "tests.reference.k_diffusion",
        "tests.reference.loops",
        "tests.reference.networks",
        "tests.reference.pipeline",
        "tests.reference.published",
    },
    "e2e": {
        "subprocess",
        "nbclient",
        "NotebookClient",
        "AppTest",
        "humbug",
        "confetti",
        "train_concept",
        "train_concepts",
        "train_jointly",
        "train_with_negative",
        "gm.api",
        "gm.sampling.pipeline",
        "gm.sampling.run",
        "gm.training.trainer",
    },
    "graph": {"toolkit", "compile_cell"},
}


def add_markers(item: pytest.Function) -> None:
    """Mark one collected test."""
    names = used_names(item)
    for marker, triggers in NAMES.items():
        if names & triggers:
            item.add_marker(marker)
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if any(_is_graph(name, value) for name, value in parameters.items()):
        item.add_marker("graph")


def used_names(item: pytest.Function) -> set[str]:
    """Return the names that the test, its fixtures and their helpers in tests/ use, and the modules of these names."""
    functions = [item.function]
    names = set(item.fixturenames)
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        functions += [definition.func for definition in definitions]
    seen: set[Any] = set()
    while functions:
        function = functions.pop()
        if (
            not isinstance(function, FunctionType)
            or function in seen
            or not (function.__module__ or "").startswith("tests")
        ):
            continue
        seen.add(function)
        for name in _code_names(function.__code__):
            names |= {name, name.split(".")[0]}
            value = function.__globals__.get(name)
            module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if not isinstance(module, str):
                continue
            names |= {module, module.split(".")[0]}
            if _is_graph("", value):
                names.add("compile_cell")
            functions += vars(value).values() if inspect.isclass(value) else [value]
    return names


def _code_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_names(constant)


def _is_graph(name: str, value: Any) -> bool:
    """Whether `value` is a Backend in graph mode, or a parameter that chooses it."""
    if isinstance(value, str):
        return value == "graph"
    return getattr(value, "graph", None) is True or (name == "graph" and value is True)
