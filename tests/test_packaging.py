"""Packaging: version, console scripts, and scripts that run from any folder."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gm
from gm.config import cli
from gm.config.parser import DEFAULT_CONFIG

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = dict(re.findall(r'^(gm-[\w-]+) = "([\w.:]+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M))


def test_there_are_six_console_scripts() -> None:
    assert len(SCRIPTS) == 6


def test_version_is_that_of_the_changelog() -> None:
    assert f"## [{gm.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_extra_ascend_has_what_canns_python_parts_import() -> None:
    """The list of CANN's installation guide ("Runtime dependencies"), less what every installation has."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^ascend = \[.*?\n(.*?)^\]", text, re.M | re.S)
    assert block
    names = re.findall(r'^    "([\w-]+)', block[1], re.M)
    cann = "attrs cython decorator sympy cffi pyyaml pathlib2 psutil scipy requests absl-py"
    assert sorted(names) == sorted(cann.split())
    # CANN 8.5 and 9.0 document NumPy from 1.19.2, below 2, and protobuf 3.20.
    assert '"numpy>=1.25,<2"' in text
    assert '"protobuf>=3.20.3,<3.21"' in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_console_script_shows_its_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, function = SCRIPTS[name].split(":")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    getattr(importlib.import_module(module), function)()
    assert capsys.readouterr().out.startswith(f"usage: {name} ")


@pytest.mark.parametrize("name", SCRIPTS)
def test_console_script_ends_with_one_line_on_a_mistake(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, function = SCRIPTS[name].split(":")
    monkeypatch.setattr(sys, "argv", [name, "--no_such_flag"])
    with pytest.raises(SystemExit) as exit_:
        getattr(importlib.import_module(module), function)()
    assert exit_.value.code == 2
    assert re.fullmatch(r"error: .+\n", capsys.readouterr().err)


def test_no_script_changes_the_import_path() -> None:
    places = ("gm", "demo", "tools", "examples", "benchmarks")
    files = [ROOT / "train_textual_inversion.py", *(path for place in places for path in (ROOT / place).rglob("*.py"))]
    assert not [path for path in files if "sys.path" in path.read_text(encoding="utf-8")]


def test_shipped_config_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.parse("", ("run",), []).model.version == "SD-XL-base-1.0"
    shipped = "configs/training/tiny_textual_inversion.yaml"
    assert cli.parse("", ("run",), ["--config", shipped]).model.version == "tiny-SD-XL"


def test_config_of_the_current_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / DEFAULT_CONFIG
    path.parent.mkdir(parents=True)
    path.write_text("model: {version: mine}\n", encoding="utf-8")
    assert cli.parse("", ("run",), []).model.version == "mine"


@pytest.mark.parametrize(
    "script", ["train_textual_inversion.py", "demo/sampling_without_streamlit.py", "tools/convert_weights/convert.py"]
)
def test_script_runs_from_another_folder(script: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / script), "--help"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
