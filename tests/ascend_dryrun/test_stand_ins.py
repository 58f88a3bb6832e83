"""Stand-ins for CANN's libraries: made once, from the installed wheel, with messages where they cannot be made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from gm.errors import UserError
from tools.ascend_dryrun import stand_ins


def test_the_names_come_from_the_plugin() -> None:
    names = stand_ins.missing_symbols(stand_ins.mindspore_lib())
    assert 300 < len(names) < 700
    assert "HcclCommDestroy" in names
    assert "malloc" not in names  # defined by libc
    assert not [name for name in names if name.startswith("Py")]


def test_stand_ins_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stand_ins.build(tmp_path / "cache")
    files = {path.name for path in folder.iterdir()}
    assert {f"lib{name}.so" for name in stand_ins.LIBRARIES} < files
    assert "libcard_ascend910.so" in files
    assert not [name for name in files if name.endswith(".s")]
    assert folder.name.startswith("mindspore-")
    monkeypatch.setattr(shutil, "which", lambda _: None)  # a second time nothing is compiled
    assert stand_ins.build(tmp_path / "cache") == folder
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("machine", "tools", "message"),
    [
        ("aarch64", {"gcc", "nm"}, "x86-64 alone; this machine is aarch64"),
        ("x86_64", {"nm"}, "needs gcc: apt-get install gcc binutils"),
        ("x86_64", {"gcc"}, "needs nm: apt-get install gcc binutils"),
    ],
)
def test_what_is_missing_is_named(
    machine: str, tools: set[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
    monkeypatch.setattr(shutil, "which", lambda name: name if name in tools else None)
    with pytest.raises(UserError, match=message):
        stand_ins.build(tmp_path)


def test_a_mindspore_without_the_plugin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"libmindspore_ascend\.so\.2 is missing: this MindSpore has no Ascend plug-in"):
        stand_ins.missing_symbols(tmp_path)


def test_the_environment_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    environment = stand_ins.environment(tmp_path, "ascend910")
    assert environment["LD_LIBRARY_PATH"] == f"{tmp_path}:/opt/lib"
    assert environment["LD_PRELOAD"].startswith(f"{tmp_path}/libcard_ascend910.so")
    assert environment["MS_SIMULATION_LEVEL"] == "0"
    assert environment["GM_GRAPHS"] == ""
    monkeypatch.setenv("LD_PRELOAD", environment["LD_PRELOAD"])
    assert stand_ins.is_ready("ascend910")
    assert not stand_ins.is_ready("ascend910b")
