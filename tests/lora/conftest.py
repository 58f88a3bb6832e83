"""LoRA files of the smallest model, made without PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gm.checkpoints.key_mapping import parameter_shapes
from gm.lora.targets import targets
from tests.project import Workshop

WriteLora = Callable[..., Path]
UNET_LAYER = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"
TEXT_LAYER = "lora_te2_text_model_encoder_layers_0_self_attn_k_proj"


def factors(module: str, shape: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Return kohya's tensors of a LoRA of rank 2 and α 1 for a layer with weights of this shape."""
    random = np.random.default_rng(seed)
    return {
        f"{module}.lora_down.weight": random.standard_normal((2, *shape[1:])).astype(np.float32),
        f"{module}.lora_up.weight": random.standard_normal((shape[0], 2) + (1,) * len(shape[2:])).astype(np.float32),
        f"{module}.alpha": np.array(1, np.float32),
    }


def delta(tensors: dict[str, np.ndarray], module: str) -> np.ndarray:
    """Return the change of a matrix at strength 1."""
    return np.float32(0.5) * (tensors[f"{module}.lora_up.weight"] @ tensors[f"{module}.lora_down.weight"])


@pytest.fixture
def write_lora(workshop: Workshop, tmp_path: Path) -> WriteLora:
    """Return the function (name, modules, more tensors, metadata) → a file with a random LoRA of these modules."""
    shapes = {
        name: target.shape
        for name, target in targets(parameter_shapes(workshop.model), workshop.config().model).items()
    }

    def write(
        name: str = "detail.safetensors",
        modules: tuple[str, ...] = (UNET_LAYER, TEXT_LAYER),
        more: dict[str, np.ndarray] | None = None,
        metadata: dict[str, str] | None = None,
        seed: int = 0,
    ) -> Path:
        tensors = dict(more or {})
        for number, module in enumerate(modules):
            tensors |= factors(module, shapes[module], 10 * seed + number)
        save_file(tensors, tmp_path / name, metadata)
        return tmp_path / name

    return write
