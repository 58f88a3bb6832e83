"""gm/models/sdxl.py: fingerprint and token tables."""

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


def test_fingerprint_depends_on_weights_but_not_on_precision(workshop: Workshop) -> None:
    config, path = workshop.model.config, workshop.folder / "weights.ckpt"
    loading.convert(path, workshop.folder / "half.safetensors", config, "float16")
    fingerprints = [sdxl.fingerprint(workshop.model)]
    for file, dtype in ((path, ms.float16), (workshop.folder / "half.safetensors", ms.float32)):
        model = sdxl.build(config, dtype)
        loading.load_weights(model, file, config)
        fingerprints.append(sdxl.fingerprint(model))
    assert fingerprints == [fingerprints[0]] * 3
    norm = model.unet.middle_block[0].in_layers[0].gamma
    norm.set_data(Tensor(norm.asnumpy() * np.float32(1.01)))
    assert sdxl.fingerprint(model) != fingerprints[0]


def test_token_tables_by_encoder(workshop: Workshop) -> None:
    config = workshop.model.config
    tables = workshop.model.token_tables()
    assert list(tables) == list(config.text_encoders)
    for name, encoder in config.text_encoders.items():
        assert tables[name].shape == (encoder.vocab_size, encoder.width)
        assert workshop.model.token_norms([5])[name] == pytest.approx(np.linalg.norm(tables[name][5]), rel=1e-6)


def test_a_refiner_has_no_token_tables(refiner: Case) -> None:
    for function in (refiner.model.token_tables, lambda: refiner.model.token_norms([1])):
        with pytest.raises(UserError, match="refiner is a refiner"):
            function()
