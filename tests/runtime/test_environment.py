"""gm/runtime/environment.py: MindSpore finds its variables set, whichever module of the toolkit imports it first."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gm.runtime import environment

CODE = """
import importlib, os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "mindspore":
            print(os.environ.get("MS_ROLE"), os.environ.get("GLOG_v"), "OMPI_COMMAND" in os.environ)
            sys.stdout.flush()
            os._exit(0)

sys.meta_path.insert(0, Finder())
importlib.import_module(sys.argv[1])
"""


@pytest.mark.e2e
@pytest.mark.parametrize("module", ["gm.api", "gm.checkpoints.loading", "gm.training.trainer", "gm.models.unet"])
def test_variables_are_set_before_mindspore_is_imported(module: str) -> None:
    mpirun = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMMAND": "python"}
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MS_", "GLOG_"))}
    process = subprocess.run(
        [sys.executable, "-c", CODE, module], env={**variables, **mpirun}, capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == ["MS_WORKER", "3", "False"]


@pytest.mark.parametrize(
    ("version", "flags", "needed"),
    [
        ("2.8.0", "avx2 avx512f", False),
        ("2.9.0", "avx2 avx512f", True),
        ("2.10.0rc1", "avx2 avx512f", True),
        ("2.9.0", "avx2 fma", False),
    ],
)
def test_avx_512_is_avoided_where_convolution_is_slow(
    version: str, flags: str, needed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"mindspore": version}[name])
    assert environment.convolution_needs_avx2(cpuinfo) is needed
    assert not environment.convolution_needs_avx2(tmp_path / "none")  # other systems


def test_avx_512_of_a_mindspore_that_pip_does_not_know_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert not environment.convolution_needs_avx2()
    assert environment.onednn_message() == ""


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the environment that `prepare` changes."""
    changed: dict[str, str] = {}
    monkeypatch.setattr(environment.os, "environ", changed)
    return changed


@pytest.mark.parametrize(
    ("card", "needed", "before", "after"),
    [
        (False, True, {}, "AVX2"),
        (False, True, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "AVX512_CORE"),
        (False, False, {}, None),
        (True, True, {}, None),
    ],
)
def test_onednn_is_limited_on_the_cpu_unless_the_user_has_set_it(
    card: bool,
    needed: bool,
    before: dict[str, str],
    after: str | None,
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "ascend_present", lambda: card)
    monkeypatch.setattr(environment, "convolution_needs_avx2", lambda: needed)
    variables.update(before)
    environment.prepare()
    assert variables.get("ONEDNN_MAX_CPU_ISA") == after


def test_messages_about_onednn(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "convolution_needs_avx2", lambda: True)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.9.0")
    variables["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    assert environment.onednn_message().startswith("MindSpore 2.9.0 computes with AVX2 on this CPU; 2.8 uses AVX-512")
    variables["ONEDNN_MAX_CPU_ISA"] = "ALL"
    assert environment.onednn_message() == (
        "ONEDNN_MAX_CPU_ISA=ALL makes convolutions of MindSpore 2.9.0 300 times slower on this CPU; unset it"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "backend_compile_cache:False"),
        ("all_finite:True", "all_finite:True,backend_compile_cache:False"),
        ("backend_compile_cache:True", "backend_compile_cache:True"),
    ],
)
def test_ascends_own_cache_is_off_unless_the_user_has_set_it(
    before: str, after: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "ascend_present", lambda: True)
    variables["MS_DEV_RUNTIME_CONF"] = before
    environment.prepare()
    assert variables["MS_DEV_RUNTIME_CONF"] == after


def test_the_cpu_needs_no_runtime_options(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "ascend_present", lambda: False)
    environment.prepare()
    assert "MS_DEV_RUNTIME_CONF" not in variables
