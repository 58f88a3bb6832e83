"""Fixtures of the tests of gm/runtime."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a compile cache of its own for the test."""
    monkeypatch.setenv("GM_GRAPHS", str(tmp_path))
    return tmp_path
