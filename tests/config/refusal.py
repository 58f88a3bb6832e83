"""Refusals of YAML files of options."""

from __future__ import annotations

from pathlib import Path

import pytest

from gm import config as configuration
from gm.errors import UserError


def refusal(text: str, folder: Path) -> str:
    """Return the message, of one line, with which loading YAML `text` is refused."""
    path = folder / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        configuration.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)
