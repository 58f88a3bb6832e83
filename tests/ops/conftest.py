"""Fixtures of the operators' tests."""

from __future__ import annotations

import pytest

from gm.runtime import backend


@pytest.fixture(params=["CPU", "Ascend"])
def layout_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each device in turn, whose layout of sequences is in effect."""
    monkeypatch.setattr(backend, "_on_ascend", request.param == "Ascend")
    return request.param
