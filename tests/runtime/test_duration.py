"""gm/runtime/duration.py."""

from __future__ import annotations

import pytest

from gm.runtime.duration import format_duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (185, "3:05 min"), (7800, "2:10 h"), (360000, "100:00 h")]
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
