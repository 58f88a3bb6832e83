"""What browsers have typed: kept apart, over restarts, and in spite of damaged files and full disks."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path

import pytest

from demo.app.server import browser_store
from demo.app.server.browser_store import BrowserStore
from gm.runtime import atomic_io


def test_values_stay_over_a_restart_and_are_apart_from_other_browsers(tmp_path: Path) -> None:
    values = {"prompt": "a <toy>", "option seed": 7, "embeddings": ["<toy>"], "previous inputs": {"img": ["a.png"]}}
    store = BrowserStore()
    store.get("first", tmp_path).update(values)
    store.get("second", tmp_path).update({"prompt": "mine"})
    assert store.get("first", tmp_path).values == values
    assert BrowserStore().get("first", tmp_path).values == values
    assert BrowserStore().get("second", tmp_path).values == {"prompt": "mine"}
    assert BrowserStore().get("third", tmp_path).values == {}


def test_values_of_other_pages_stay_and_what_json_cannot_hold_is_left_out(tmp_path: Path) -> None:
    state = BrowserStore().get("a", tmp_path)
    state.update({"prompt": "one"})
    state.update({"option steps": 3, "upload": object(), "long": "x" * 10**6, "deep": [[["y"]]]})
    assert state.values == {"prompt": "one", "option steps": 3, "deep": [[["y"]]]}


def test_the_oldest_values_go_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser_store, "_MAX_VALUES", 3)
    state = BrowserStore().get("a", tmp_path)
    for number in range(5):
        state.update({"prompt": f"{number}", f"baseline of {number}": "x"})
    assert state.values == {"prompt": "4", "baseline of 3": "x", "baseline of 4": "x"} | state.values
    assert len(state.values) == 3
    monkeypatch.setattr(browser_store, "_MAX_FILE", 100)
    state.update({f"option {number}": "y" * 30 for number in range(3)})
    assert len(state.file.read_text()) <= 100
    assert BrowserStore().get("a", tmp_path).values


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b"x" * 5 * 10**6])
def test_a_damaged_file_is_one_browser_with_the_defaults(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    state = BrowserStore().get("a", tmp_path)
    assert state.values == {}
    state.update({"prompt": "new"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"prompt": "new"}


def test_a_full_disk_loses_nothing_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_io, "_flush", full)
    state = BrowserStore().get("a", tmp_path)
    state.update({"prompt": "kept"})
    assert state.values == {"prompt": "kept"}
    assert "the disk is full" in caplog.text


def test_a_browser_is_gone_after_the_grace_without_a_connected_tab(tmp_path: Path) -> None:
    connected = {"one": True, "two": False}
    state = BrowserStore().get("a", tmp_path)
    state.note_session("one", connected.__getitem__)
    state.note_session("two", connected.__getitem__)
    state.last_seen = time.monotonic() - 2 * browser_store.GRACE_SECONDS
    assert not state.owner.is_gone()
    connected["one"] = False
    assert not state.owner.is_gone()  # it was there just now
    state.last_seen -= 2 * browser_store.GRACE_SECONDS
    assert state.owner.is_gone()
    connected["two"] = True  # it came back
    assert not state.owner.is_gone()


def test_few_browsers_are_in_memory_and_all_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser_store, "_MAX_BROWSERS", 2)
    store = BrowserStore()
    for name in "abcd":
        store.get(name, tmp_path).update({"prompt": name})
    assert len(store._states) == 2
    assert [store.get(name, tmp_path).values["prompt"] for name in "abcd"] == list("abcd")
