"""The model as one object."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor

from gm import sdxl
from gm.weights import transfer
from tests.workshop import Workshop


def test_the_fingerprint_tells_weights_apart_and_precisions_not(workshop: Workshop) -> None:
    config, path = workshop.model.config, workshop.folder / "weights.ckpt"
    transfer.convert(path, workshop.folder / "half.safetensors", config, "float16")
    found = [sdxl.fingerprint(workshop.model)]
    for file, dtype in ((path, ms.float16), (workshop.folder / "half.safetensors", ms.float32)):
        model = sdxl.build(config, dtype)
        transfer.load(model, file, config)
        found.append(sdxl.fingerprint(model))
    assert found == [found[0]] * 3
    norm = model.unet.middle_block[0].in_layers[0].gamma
    norm.set_data(Tensor(norm.asnumpy() * np.float32(1.01)))
    assert sdxl.fingerprint(model) != found[0]
