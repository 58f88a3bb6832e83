"""gm/models/stable_diffusion.py: fingerprint and token tables."""

from __future__ import annotations

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm import config as configuration
from gm.checkpoints import loading
from gm.config.networks import TextEncoderConfig, UNetConfig
from gm.errors import UserError
from gm.models import heads, stable_diffusion
from gm.runtime import backend
from tests.project import Workshop
from tests.reference.case import Case
from tests.reference.configs import SMALL_SD1


def test_fingerprint_depends_on_weights_but_not_on_precision(workshop: Workshop) -> None:
    config, path = workshop.model.config, workshop.folder / "weights.ckpt"
    loading.convert(path, workshop.folder / "half.safetensors", config, "float16")
    fingerprints = [stable_diffusion.fingerprint(workshop.model)]
    for file, dtype in ((path, ms.float16), (workshop.folder / "half.safetensors", ms.float32)):
        model = stable_diffusion.build(config, dtype)
        loading.load_weights(model, file, config)
        fingerprints.append(stable_diffusion.fingerprint(model))
    assert fingerprints == [fingerprints[0]] * 3
    norm = model.unet.middle_block[0].in_layers[0].gamma
    norm.set_data(Tensor(norm.asnumpy() * np.float32(1.01)))
    assert stable_diffusion.fingerprint(model) != fingerprints[0]


@pytest.mark.parametrize("dtype", [ms.float16, ms.bfloat16, ms.float32])
def test_fingerprint_is_the_same_on_ascend(dtype: object, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where group normalisation has float16 weights in a float16 network."""
    monkeypatch.setattr(backend, "_on_ascend", True)
    model = stable_diffusion.build(workshop.model.config, dtype)
    loading.load_weights(model, workshop.folder / "weights.ckpt", workshop.model.config)
    norm = ms.float16 if dtype == ms.float16 else ms.float32
    assert model.unet.out[0].gamma.dtype == norm
    assert model.first_stage_model.encoder.norm_out.gamma.dtype == ms.float32
    assert stable_diffusion.fingerprint(model) == stable_diffusion.fingerprint(workshop.model)


@pytest.mark.parametrize(
    ("channels", "head", "encoder_width", "refused"),
    [
        (32, 32, 24, ""),  # those of 12 of the text encoder are padded
        (288, 576, 24, "the UNet has heads of 576"),
        (32, 16, 1088, "the text encoder clip_l has heads of 544"),
    ],
)
def test_flash_attention_everywhere_needs_heads_that_the_kernel_takes(
    channels: int, head: int, encoder_width: int, refused: str, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(
        workshop.model.config,
        unet=UNetConfig(4, 4, channels, (1, 2), 1, (0, 1), None, head, encoder_width + 32, 32 + 6 * 32, 8),
        text_encoder_1=TextEncoderConfig(encoder_width, 2, 2),
        text_encoder_2=TextEncoderConfig(32, 2, 2),
    )
    monkeypatch.setattr(backend, "_on_ascend", True)
    monkeypatch.setattr(backend, "_flash_attention", "auto")
    stable_diffusion.build(config, ms.float16)
    monkeypatch.setattr(backend, "_flash_attention", "on")
    if not refused:
        stable_diffusion.build(config, ms.float16)
        return
    message = "--flash_attention on needs attention heads of at most 512 channels; "
    with pytest.raises(UserError) as raised:
        stable_diffusion.build(config, ms.float16)
    assert str(raised.value) == f"{message}{refused}: use auto"


def test_the_first_level_of_stable_diffusion_1_has_heads_of_48_on_ascend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_on_ascend", True)
    monkeypatch.setattr(backend, "_flash_attention", "on")
    config = configuration.load("configs/training/sd_v1.5_textual_inversion.yaml").model
    model = stable_diffusion.build(config, ms.float16)
    shapes = {p.name: (tuple(p.shape), heads.published_shape(p)) for p in model.unet.get_parameters()}
    block = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2"
    assert shapes[f"{block}.to_k.weight"] == ((8 * 48, 768), (320, 768))
    assert shapes[f"{block}.to_out.0.weight"] == ((320, 8 * 48), (320, 320))
    padded = [name for name, (inside, published) in shapes.items() if inside != published]
    assert len(padded) == 10 * 4  # two attentions in each of the five blocks of the level


def test_attention_of_the_unet_alone_is_upcast() -> None:
    config = dataclasses.replace(SMALL_SD1, unet=dataclasses.replace(SMALL_SD1.unet, upcast_attention=True))
    for each, upcast in ((SMALL_SD1, False), (config, True)):
        model = stable_diffusion.build(each)
        block = model.unet.middle_block[1].transformer_blocks[0]
        assert (block.attn1.attend.upcast, block.attn2.attend.upcast) == (upcast, upcast)
        encoder = model.conditioner.embedders[0].transformer.text_model.encoder
        assert not encoder.layers[0].self_attn.attend.upcast


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
