"""Parameter names: MindSpore's ↔ those of the published single file.

The networks' attributes are the published names, so the network is the table. Only three suffixes differ, because
MindSpore's own layers call their parameters otherwise, and users' files made by other MindSpore programs do too.
"""

from __future__ import annotations

from mindspore import nn

Layout = dict[str, tuple[int, ...]]

_SUFFIXES = {".gamma": ".weight", ".beta": ".bias", ".embedding_table": ".weight"}
# Found beside the weights, and none: 0, 1, 2, … in the published file; the noise levels in many that were merged since.
UNUSED = (".position_ids", "denoiser.sigmas")


def layout(model: nn.Cell) -> Layout:
    """Return MindSpore's name and the shape of every published parameter of `model`, in the network's order."""
    return {p.name: tuple(p.shape) for p in model.get_parameters()}


def published_name(name: str) -> str:
    """Return the published name of the parameter that MindSpore calls `name`."""
    stem, dot, last = name.rpartition(".")
    return stem + _SUFFIXES.get(dot + last, dot + last)
