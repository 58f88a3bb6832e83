"""A checkpoint with random weights, with the names and shapes of the published single file.

The names are those of our networks, with three suffixes replaced. diffusers' loader, which must find every tensor of
its networks among them, proves that they are the published names.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from gm.config.model import ModelConfig
from gm.models import stable_diffusion

# Layers that write to a residual stream. Their weights are small, so that the variance of a normalisation's input is
# near its epsilon and a wrong epsilon shows.
_SMALL_GAIN = 0.03
_WRITERS = re.compile(
    r"input_blocks\.0\.0|in_layers\.2|emb_layers\.1|out_layers\.3|proj_in|to_out\.0|ff\.net\.2|"
    r"coder\.conv_in|\.conv1|\.conv2|attn_1\.proj_out|out_proj|\.fc2|c_proj"
)
# Layers between residual streams: their weights keep the scale, their biases are as small as the stream.
_CONNECTORS = re.compile(r"skip_connection|\.op\.|\.conv\.bias|nin_shortcut|transformer_blocks|\.1\.proj_out")


def published_name(name: str) -> str:
    """Return the published name of our parameter `name`."""
    for ours, theirs in ((".gamma", ".weight"), (".beta", ".bias"), (".embedding_table", ".weight")):
        if name.endswith(ours):
            return name.removesuffix(ours) + theirs
    return name


def write_published(config: ModelConfig, path: Path, seed: int) -> dict[str, np.ndarray]:
    """Write random float32 weights of every tensor of the model to a safetensors file, and return them.

    Matrices are about N(0, 1/inputs), normalisations 1 ± 0.1 and 0 ± 0.1, biases 0 ± 0.1, token tables as small as
    CLIP's: no tensor has its default values and no two are equal, so exchanged names show.
    """
    random = np.random.default_rng(seed)
    tensors = {}
    for parameter in stable_diffusion.build(config).get_parameters():
        values = random.standard_normal(parameter.shape, dtype=np.float32)
        tensors[published_name(parameter.name)] = np.asarray(_scaled(parameter.name, values), np.float32)
    assert not any(name.endswith("position_ids") for name in tensors)
    save_file(tensors, path)
    return tensors


def _scaled(name: str, values: np.ndarray) -> np.ndarray:
    if name.endswith("logit_scale"):
        return 4.6 + 0.1 * values
    if name.endswith(".gamma"):
        return 1.0 + 0.1 * values
    if name.endswith(".beta"):
        return 0.1 * values
    if name.endswith(("embedding_table", "positional_embedding")):
        return 0.02 * values
    gain = _SMALL_GAIN if _WRITERS.search(name) else 1.0
    if values.ndim == 1:
        return 0.1 * (_SMALL_GAIN if gain != 1.0 or _CONNECTORS.search(name) else 1.0) * values
    return gain * values / np.sqrt(np.prod(values.shape[1:]))
