"""SDXL as one object, whose parameters carry the names of the published file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from gm.config.model import ModelConfig
from gm.models import text_encoders, unet
from gm.models.conditioner import Conditioner
from gm.models.unet import UNet
from gm.models.vae import AutoencoderKL


class _Diffusion(nn.Cell):
    """Gives the UNet its published prefix, `model.diffusion_model`."""

    def __init__(self, config: ModelConfig, dtype: Any) -> None:
        super().__init__()
        self.diffusion_model = UNet(config.unet, dtype)


class SDXL(nn.Cell):
    """UNet (`.unet`), text conditioner (`.conditioner`) and autoencoder (`.first_stage_model`) of one model.

    `config.kind` tells a refiner, whose conditioner has one text encoder, from a base model, whose has two.
    """

    def __init__(self, config: ModelConfig, dtype: Any) -> None:
        super().__init__()
        self.config = config
        self.model = _Diffusion(config, dtype)
        self.conditioner = Conditioner(config, dtype)
        self.first_stage_model = AutoencoderKL(config.vae)

    @property
    def unet(self) -> UNet:
        return self.model.diffusion_model

    def token_tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the frozen token tables of both encoders, [rows, width]; UserError for a refiner, which has one."""
        self.config.require("base")
        one, two = (encoder for encoder in self.conditioner.embedders)
        tables = one.transformer.text_model.embeddings.token_embedding, two.model.token_embedding
        return tables[0].embedding_table.asnumpy(), tables[1].embedding_table.asnumpy()

    def token_norms(self, ids: Sequence[int]) -> tuple[float, float]:
        """Return the usual Euclidean norm of the rows of `ids` in each encoder, their median."""
        tables = (table[list(ids)].astype(np.float32) for table in self.token_tables())
        one, two = (float(np.median(np.linalg.norm(rows, axis=1))) for rows in tables)
        return one, two

    def enable_gradient_checkpointing(self) -> None:
        """From now on keep of each transformer block its input alone, and compute the rest anew in the backward pass.

        Less memory for a slower step; also known as gradient checkpointing (Chen et al., 2016).
        """
        for network, blocks in ((self.unet, unet.RECOMPUTED), (self.conditioner, text_encoders.RECOMPUTED)):
            for _, cell in network.cells_and_names():
                if isinstance(cell, blocks):
                    cell.recompute()

    def release_vae(self) -> None:
        """Give the autoencoder's memory back, once the images are encoded and none will be decoded."""
        del self.first_stage_model


def build(config: ModelConfig, dtype: Any = ms.float32) -> SDXL:
    """Return the model without weights, at no cost in time or memory; `weights.load` fills it.

    `dtype` is that of the UNet's and the encoders' weights; normalisations and the autoencoder are float32.
    """
    with no_init_parameters():
        model = SDXL(config, dtype)
    return model.set_train(False)


def fingerprint(model: SDXL) -> str:
    """Return a hash that tells one set of weights from another: of every norm's, as float16.

    Norms are few, no fine-tuning leaves them all alone, and a model of any precision keeps them in float32; as float16
    they are the same whether the file was float32 or float16.
    """
    digest = hashlib.sha256()
    for parameter in sorted(model.get_parameters(), key=lambda p: p.name):
        if parameter.name.endswith((".gamma", ".beta")):
            digest.update(parameter.name.encode())
            digest.update(parameter.asnumpy().astype("<f2").tobytes())
    return digest.hexdigest()[:16]
