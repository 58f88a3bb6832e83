"""Diffusers folders of the small models, as diffusers and transformers save them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np

from gm.checkpoints.lazy_tensor import LazyTensor
from tests.reference.case import Case


def save_diffusers_folder(case: Case, folder: Path, half: bool = False, **options: object) -> Path:
    """Save the networks of `case` in `folder`, with `options` of `save_pretrained`; return the folder."""
    reference = case.reference
    networks = {
        "unet": reference.unet,
        "text_encoder": reference.text_encoder_1,
        "text_encoder_2": reference.text_encoder_2,
        "vae": reference.vae,
    }
    for name, model in networks.items():
        if model is not None:
            (copy.deepcopy(model).half() if half else model).save_pretrained(folder / name, **options)
    return folder


def assert_published(tensors: dict[str, LazyTensor], case: Case, dtype: str = "float32") -> None:
    """Assert that the tensors are those of the published file, to the bit; the folder has no `logit_scale`."""
    assert set(tensors) == set(case.weights)
    for name, array in case.weights.items():
        expected = np.array(4.6052, np.float32) if name.endswith("logit_scale") else array.astype(dtype)
        assert tensors[name].shape == expected.shape, name
        assert tensors[name].read().tobytes() == expected.tobytes(), name
