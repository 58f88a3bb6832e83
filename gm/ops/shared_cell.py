"""Sharing of Cells without parameters."""

from __future__ import annotations

import functools
from typing import Any

from mindspore import nn


@functools.cache
def shared_cell(cell_type: type[nn.Cell], *arguments: Any) -> nn.Cell:
    """Return the one Cell `cell_type(*arguments)`, which must not hold parameters.

    MindSpore parses and differentiates every Cell object of a graph separately, even if it equals another. At full size
    sharing reduces the first training step from 164 to 72 seconds, and its memory by 1.7 GB.
    """
    return cell_type(*arguments)
