"""The model as one object."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.checkpoints import loading
from gm.errors import UserError
from gm.models import sdxl
from tests.project import Workshop
from tests.reference.case import Case


def test_the_fingerprint_tells_weights_apart_and_precisions_not(workshop: Workshop) -> None:
    config, path = workshop.model.config, workshop.folder / "weights.ckpt"
    loading.convert(path, workshop.folder / "half.safetensors", config, "float16")
    found = [sdxl.fingerprint(workshop.model)]
    for file, dtype in ((path, ms.float16), (workshop.folder / "half.safetensors", ms.float32)):
        model = sdxl.build(config, dtype)
        loading.load(model, file, config)
        found.append(sdxl.fingerprint(model))
    assert found == [found[0]] * 3
    norm = model.unet.middle_block[0].in_layers[0].gamma
    norm.set_data(Tensor(norm.asnumpy() * np.float32(1.01)))
    assert sdxl.fingerprint(model) != found[0]


def test_a_refiner_has_no_tables_for_words_to_start_from(refiner: Case) -> None:
    for asked in (refiner.model.token_tables, lambda: refiner.model.token_norms([1])):
        with pytest.raises(UserError, match="refiner is a refiner, which learns no words"):
            asked()
