"""gm/runtime/onednn.py: what it needs, what it says where that is missing, and the compiled library."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import pytest

from gm.runtime import devices, onednn
from tests.onednn_operators import UNAVAILABLE


@pytest.fixture(autouse=True)
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_path", "")
    monkeypatch.setattr(onednn, "_has_bfloat16", False)


def cpuinfo(folder: Path, flags: str) -> Path:
    file = folder / "cpuinfo"
    file.write_text(f"model name\t: Some CPU\nflags\t\t: fpu {flags} sse\n")
    return file


@pytest.mark.parametrize("flags", ["avx512_bf16", "amx_bf16"])
def test_a_processor_with_bfloat16(flags: str, tmp_path: Path) -> None:
    onednn.check_processor(cpuinfo(tmp_path, flags))


def test_a_processor_without_bfloat16(tmp_path: Path) -> None:
    with pytest.raises(onednn.Unavailable, match="neither AVX512-BF16 nor AMX"):
        onednn.check_processor(cpuinfo(tmp_path, "avx512f"))
    with pytest.raises(onednn.Unavailable, match="neither AVX512-BF16 nor AMX"):
        onednn.check_processor(tmp_path / "nowhere")


def test_without_onednn_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNLROOT", str(tmp_path))
    with pytest.raises(onednn.Unavailable, match=r"no oneDNN 3 in DNNLROOT=.*; pip install .*\[onednn\]"):
        onednn.find_onednn()


def test_onednn_of_dnnlroot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lib/libdnnl.so.3", "include/dnnl.hpp"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    monkeypatch.setenv("DNNLROOT", str(tmp_path))
    assert onednn.find_onednn() == tmp_path


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(onednn.Unavailable, match=r"no C\+\+ compiler \(CXX=no-such-compiler\)"):
        onednn.find_compiler()


def test_a_compiler_that_fails(tmp_path: Path) -> None:
    with pytest.raises(onednn.Unavailable, match="false does not compile the operators"):
        onednn.compile_library(tmp_path / "library.so", tmp_path, "/bin/false")
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_does_not_load_is_removed(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(b"no library")
    with pytest.raises(onednn.Unavailable, match="do not load"):
        onednn._open_library(damaged)
    assert not damaged.exists()


def test_bfloat16_falls_back_to_float32_with_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(onednn, "check_processor", lambda: None)
    monkeypatch.setenv("DNNLROOT", str(tmp_path))
    assert devices.weight_dtype("bfloat16", "CPU") == ms.float32
    assert "--precision bfloat16 is float32 here: no oneDNN 3 in DNNLROOT=" in caplog.text


def test_the_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        onednn.load()
    except onednn.Unavailable as reason:
        with pytest.raises(onednn.Unavailable, match=UNAVAILABLE):
            raise reason from None
        return
    first = onednn.library()
    monkeypatch.setattr(onednn, "_path", "")
    monkeypatch.setattr(onednn, "compile_library", lambda *_: pytest.fail("compiled again"))
    onednn.load()
    assert onednn.library() == first


def test_the_library_is_compiled_again_after_its_folder_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(onednn, "find_onednn", lambda: tmp_path)
    monkeypatch.setattr(onednn, "find_compiler", lambda: "g++")
    monkeypatch.setattr(onednn, "_key", lambda *_: "0")
    monkeypatch.setattr(onednn, "_open_library", lambda path: None)
    monkeypatch.setattr(onednn, "compile_library", lambda path, *_: (compiled.append(path), path.touch()))
    monkeypatch.setattr(onednn, "_folder", lambda: tmp_path)
    for _ in range(2):
        onednn.load()
    assert len(compiled) == 1
    Path(onednn.library()).unlink()
    onednn.load()
    assert compiled[1:] == [Path(onednn.library())]
