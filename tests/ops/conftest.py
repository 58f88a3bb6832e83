"""What the tests of operators share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gm.runtime import backend


@pytest.fixture(params=["CPU", "Ascend"])
def layout_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(backend, "_on_ascend", request.param == "Ascend")
    return request.param
