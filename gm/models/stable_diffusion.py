"""SDXL (Podell et al., 2023), Stable Diffusion 1 and 2 (Rombach et al., 2022): one Cell with the published names.

The three families are one class: they differ in their config, and in the names of the text encoders' parameters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters

from gm.config.model import ModelConfig
from gm.errors import UserError
from gm.models import spatial_transformer, text_encoders
from gm.models.conditioner import Conditioner
from gm.models.unet import UNet
from gm.models.vae import AutoencoderKL
from gm.ops import ascend
from gm.runtime import backend
from gm.runtime.backend import DType
from gm.text.bpe import END, START


class _DiffusionWrapper(nn.Cell):
    """Gives the UNet its published prefix, `model.diffusion_model`."""

    def __init__(self, config: ModelConfig, dtype: DType) -> None:
        super().__init__()
        self.diffusion_model = UNet(config.unet, dtype)


class StableDiffusion(nn.Cell):
    """UNet (`unet`), conditioner (`conditioner`) and autoencoder (`first_stage_model`) of a base model or a refiner."""

    def __init__(self, config: ModelConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.model = _DiffusionWrapper(config, dtype)
        self.conditioner = Conditioner(config, dtype)
        for index in range(len(config.text_encoders)):
            prefix = config.traits.text_encoder_prefix.format(index)
            for parameter in self.conditioner.embedders[index].get_parameters():
                parameter.name = parameter.name.replace(f"conditioner.embedders.{index}.", prefix)
        self.first_stage_model = AutoencoderKL(config.vae)

    @property
    def unet(self) -> UNet:
        return self.model.diffusion_model

    def token_tables(self) -> dict[str, np.ndarray]:
        """Return the frozen token embedding table [vocabulary, width] of each text encoder by name.

        Raises UserError for a refiner, which is not trained.
        """
        self.config.require("base")
        embeddings = self.conditioner.token_embeddings()
        return {name: embedding.embedding_table.asnumpy() for name, embedding in embeddings.items()}

    def token_norms(self, ids: Sequence[int]) -> dict[str, float]:
        """Return the median Euclidean norm of the token embeddings of `ids` in each text encoder by name."""
        norms = {}
        for name, table in self.token_tables().items():
            vectors = table[list(ids)].astype(np.float32)
            norms[name] = float(np.median(np.linalg.norm(vectors, axis=1)))
        return norms

    def text_encoder_output(self, encoder: str, vectors: np.ndarray) -> np.ndarray:
        """Return a text encoder's outputs for token embeddings [n, width] as a prompt, float32 [n, width].

        It is the last layer's hidden state of each, after the final norm, as CLIP was trained. n is at most 75.
        """
        n, table_size = len(vectors), self.config.text_encoders[encoder].vocab_size
        prompt = np.full((1, self.config.context_length), END, np.int32)
        prompt[0, : n + 1] = [START, *range(table_size, table_size + n)]
        index = self.conditioner.names.index(encoder)
        states = self.conditioner.embedders[index].output(Tensor(prompt), Tensor(vectors.astype(np.float32)))
        return np.asarray(states.asnumpy()[0, 1 : n + 1], np.float32)

    def enable_gradient_checkpointing(self) -> None:
        """Store only the input of each transformer block, and recompute the rest in the backward pass.

        Less memory for a slower step (Chen et al., 2016).
        """
        for network, kinds in (
            (self.unet, spatial_transformer.CHECKPOINTED_CELLS),
            (self.conditioner, text_encoders.CHECKPOINTED_CELLS),
        ):
            for _, cell in network.cells_and_names():
                if isinstance(cell, kinds):
                    cell.recompute()

    def release_vae(self) -> None:
        """Free the autoencoder's memory, once the images are encoded and if none will be decoded."""
        del self.first_stage_model


def build(config: ModelConfig, dtype: DType = ms.float32) -> StableDiffusion:
    """Return the model without weights, which takes neither time nor memory; `gm.checkpoints.loading.load` loads them.

    `dtype` is that of the weights of UNet and text encoders; normalisations and the autoencoder are float32. Raises
    UserError for attention heads that `--flash_attention on` cannot have on Ascend.
    """
    if backend.on_ascend() and backend.flash_attention() == "on":
        _check_heads(config)
    with no_init_parameters():
        model = StableDiffusion(config, dtype)
    return model.set_train(False)


def _check_heads(config: ModelConfig) -> None:
    unet = config.unet
    widths = [("the UNet", channels // unet.heads(channels)) for channels in unet.attention_channels]
    for name, encoder in config.text_encoders.items():
        widths.append((f"the text encoder {name}", encoder.width // encoder.heads))
    for name, width in widths:
        if not ascend.takes_heads(ascend.head_width(width)):
            raise UserError(
                f"--flash_attention on needs attention heads of at most 512 channels; {name} has heads of {width}: "
                "use auto"
            )


def fingerprint(model: StableDiffusion) -> str:
    """Return a hash of the model's weights, computed from those of all norms, as float16.

    Norms are small, every fine-tuning changes some of them, and a model of any precision has them in float32 or (group
    normalisation on Ascend) float16; rounded to float16 they are the same whether the file was float32 or float16.
    """
    digest = hashlib.sha256()
    for parameter in sorted(model.get_parameters(), key=lambda p: p.name):
        if parameter.name.endswith((".gamma", ".beta")):
            digest.update(parameter.name.encode())
            digest.update(parameter.asnumpy().astype("<f2").tobytes())
    return digest.hexdigest()[:16]
