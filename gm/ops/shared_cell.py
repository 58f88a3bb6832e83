"""Sharing of Cells without parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mindspore import nn

from gm.runtime import onednn


def shared_cell(cell_type: Callable[..., nn.Cell], *arguments: Any) -> nn.Cell:
    """Return the one Cell `cell_type(*arguments)`, which must not hold parameters, but may hold the CPU's operators.

    MindSpore parses and differentiates every Cell object of a graph separately, even if it equals another. At full size
    sharing reduces the first training step from 164 to 72 seconds, and its memory by 1.7 GB.
    """
    return _shared_cell(onednn.library(), cell_type, *arguments)


@functools.cache
def _shared_cell(library: str, cell_type: Callable[..., nn.Cell], *arguments: Any) -> nn.Cell:
    """Return the Cell for one library of the CPU's operators, whose path Cells hold: another library needs others."""
    return cell_type(*arguments)
