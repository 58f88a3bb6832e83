"""Parameter names: MindSpore's ↔ the keys of the published single file.

The networks' attributes are the published keys, so no table is needed. Only three suffixes differ, because MindSpore's
own layers name their parameters otherwise, and so do the files of other MindSpore programs.
"""

from __future__ import annotations

from mindspore import nn

from gm.models import heads

ParameterShapes = dict[str, tuple[int, ...]]

_SUFFIXES = {".gamma": ".weight", ".beta": ".bias", ".embedding_table": ".weight"}
# Keys beside the weights: position_ids (0, 1, 2, …) in the published file, noise levels in many merged models.
IGNORED_SUFFIXES = (".position_ids", "denoiser.sigmas")


def parameter_shapes(model: nn.Cell) -> ParameterShapes:
    """Return the shape of every parameter of `model` by MindSpore's name, in the order of the network."""
    return {parameter.name: heads.published_shape(parameter) for parameter in model.get_parameters()}


def published_name(name: str) -> str:
    """Return the published key of the parameter with MindSpore's `name`."""
    stem, dot, last = name.rpartition(".")
    return stem + _SUFFIXES.get(dot + last, dot + last)
