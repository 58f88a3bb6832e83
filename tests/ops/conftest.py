"""Fixtures of the operators' tests."""

from __future__ import annotations

import pytest

from gm.runtime import backend
from tests.ops.stand_ins import StandIns


@pytest.fixture(params=["CPU", "Ascend"])
def layout_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each device in turn, whose layout of sequences is in effect."""
    monkeypatch.setattr(backend, "_on_ascend", request.param == "Ascend")
    return request.param


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """Stand-ins for the kernels that Ascend alone has."""
    return StandIns(monkeypatch.setattr)
