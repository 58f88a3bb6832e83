"""Inputs of the graphs, as training and sampling pass them; nothing is compiled."""

from __future__ import annotations

import mindspore as ms
import pytest

from gm.config import Config
from gm.config.model import ModelConfig
from gm.runtime.backend import Backend
from tests.reference.configs import LIKE_BASE, SMALL_SD1
from tools.ascend_dryrun.graphs import Graphs


@pytest.mark.parametrize(("model", "y_shape"), [(LIKE_BASE, (2, LIKE_BASE.unet.adm_in_channels)), (SMALL_SD1, None)])
def test_a_model_without_class_input_is_denoised_without_y(model: ModelConfig, y_shape: tuple[int, int] | None) -> None:
    config = Config(model=model)
    *_, y = Graphs(config, Backend("CPU", graph=False, dtype=ms.float32)).denoiser().inputs[:6]
    assert (None if y is None else y.shape) == y_shape


def test_each_text_encoder_has_ids_and_vectors() -> None:
    backend = Backend("CPU", graph=False, dtype=ms.float32)
    for model, count in ((LIKE_BASE, 2), (SMALL_SD1, 1)):
        graphs = Graphs(Config(model=model), backend)
        assert len(graphs.conditioner().inputs) == 2 + 2 * count
        assert len(graphs.train_step().inputs) == 6 + count
        assert len(graphs.update().inputs) == count
