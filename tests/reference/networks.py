"""Networks of diffusers and transformers, with weights loaded by diffusers' own single-file loader."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from gm.config.model import ModelConfig
from gm.config.networks import TextEncoderConfig

torch.set_num_threads(1)  # with networks this small, more threads are slower


@dataclass(frozen=True)
class Reference:
    """PyTorch networks of one model; a refiner has no text encoder 1, Stable Diffusion no text encoder 2.

    Methods take PyTorch tensors or NumPy arrays, and return tensors.
    """

    config: ModelConfig
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder_1: CLIPTextModel | None
    text_encoder_2: CLIPTextModelWithProjection | None

    def encode_text_1(self, ids: Any, embedding_vectors: Any) -> Tensor:
        """Return the hidden states before the last layer [N, L, width 1]."""
        return self._run("text_encoder_1", "embeddings.", ids, embedding_vectors).hidden_states[-2]

    def encode_text_2(self, ids: Any, embedding_vectors: Any, pool_position: Any = None) -> tuple[Tensor, Tensor]:
        """Return the hidden states before the last layer [N, L, width 2] and the pooled output [N, width 2].

        It is pooled at `pool_position`, by default as transformers does: at the largest id.
        """
        out = self._run("text_encoder_2", "text_model.embeddings.", ids, embedding_vectors)
        if pool_position is None:
            return out.hidden_states[-2], out.text_embeds
        final = out.last_hidden_state  # after the final norm
        pooled = self.text_encoder_2.text_projection(final[torch.arange(len(final)), tensor(pool_position).long()])
        return out.hidden_states[-2], pooled

    def condition(self, ids_1: Any, ids_2: Any, pool_position: Any, clip_l: Any, clip_g: Any) -> tuple[Tensor, Tensor]:
        """Return the context [N, L, width 1 + width 2] and the pooled output [N, width 2].

        Of Stable Diffusion the context is the last hidden state of its only encoder, after the final norm, for which
        `clip_l` has the vectors; there is no pooled output. SD 2 pads as text encoder 2 of SDXL does.
        """
        if self.text_encoder_2 is None:
            ids = ids_2 if "clip_h" in self.config.text_encoders else ids_1
            return self._run("text_encoder_1", "embeddings.", ids, clip_l).last_hidden_state, None
        hidden_2, pooled = self.encode_text_2(ids_2, clip_g, pool_position)
        return torch.cat((self.encode_text_1(ids_1, clip_l), hidden_2), dim=-1), pooled

    def epsilon(self, x: Any, timestep: Any, context: Any, pooled: Any, sizes: Any) -> Tensor:
        """Return the predicted noise [N, out, H, W]."""
        added = None if pooled is None else {"text_embeds": tensor(pooled), "time_ids": tensor(sizes)}
        return self.unet(tensor(x), tensor(timestep), tensor(context), added_cond_kwargs=added).sample

    def class_embedding(self, pooled: Any, sizes: Any) -> Tensor:
        """Return the input of the UNet's `add_embedding`: pooled output and embedded sizes [N, V]."""
        embeddings = []
        hook = self.unet.add_embedding.register_forward_pre_hook(lambda _, arguments: embeddings.append(arguments[0]))
        pooled = tensor(pooled)
        n, unet = len(pooled), self.config.unet
        try:
            x, context = torch.zeros(n, unet.in_channels, 8, 8), torch.zeros(n, 1, unet.context_dim)
            self.epsilon(x, torch.zeros(n), context, pooled, sizes)
        finally:
            hook.remove()
        return embeddings[0]

    def encode_image(self, images: Any) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the posterior of the unscaled latents."""
        posterior = self.vae.encode(tensor(images)).latent_dist
        return posterior.mean, posterior.logvar

    def decode_latents(self, latents: Any) -> Tensor:
        """Return the images of unscaled latents."""
        return self.vae.decode(tensor(latents)).sample

    def _run(self, name: str, prefix: str, ids: Any, embedding_vectors: Any) -> Any:
        """Run a text encoder with `embedding_vectors` appended to its token table, so that they get gradients."""
        model = getattr(self, name)
        key = prefix + "token_embedding.weight"
        table = torch.cat((model.get_parameter(key), tensor(embedding_vectors)))
        arguments = {"input_ids": tensor(ids).long(), "output_hidden_states": True}
        return functional_call(model, {key: table}, (), arguments)


def tensor(values: Any) -> Tensor:
    """Return `values` as a tensor; a tensor is returned unchanged."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))


def load(config: ModelConfig, path: Path, folder: Path) -> Reference:
    """Load the published-format file at `path` with diffusers' loader, whose configs are written to `folder`."""
    unet = UNet2DConditionModel.from_single_file(str(path), config=_write(folder / "unet", unet_config(config)))
    vae = AutoencoderKL.from_single_file(str(path), config=_write(folder / "vae", _autoencoder(config)))
    text = []
    for number, kind in enumerate((CLIPTextModel, CLIPTextModelWithProjection), 1):
        encoder = getattr(config, f"text_encoder_{number}")
        name = next((name for name, each in config.text_encoders.items() if each is encoder), None)
        if name is None:
            text.append(None)
            continue
        activation = "quick_gelu" if name == "clip_l" else "gelu"
        folder_of_encoder = _write(folder / f"text_{number}", _text_encoder(encoder, activation))
        checkpoint = load_file(path)  # again: the loader may remove tensors from it
        text.append(
            create_diffusers_clip_model_from_ldm(
                kind, checkpoint, config=folder_of_encoder, torch_dtype=torch.float32, local_files_only=True
            )
        )
    for model in filter(None, (unet, vae, *text)):
        missing = [name for name, p in model.named_parameters() if p.is_meta]
        assert not missing, f"diffusers' loader did not find {missing}"
        model.requires_grad_(False).eval()
    return Reference(config, unet, vae, *text)


def _write(folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def unet_config(config: ModelConfig) -> dict[str, Any]:
    """Return our config under diffusers' names; constants are as in stable-diffusion-xl-base-1.0/unet/config.json."""
    unet = config.unet
    channels = [mult * unet.model_channels for mult in unet.channel_mult]
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in unet.transformer_depth]
    up = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(unet.transformer_depth)]
    class_embedding = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": config.size_embedding_dim,
        "projection_class_embeddings_input_dim": unet.adm_in_channels,
    }
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        **(class_embedding if config.has_class_embedding else {}),
        "attention_head_dim": [unet.heads(c) for c in channels],  # diffusers' misnomer: the number of heads
        "block_out_channels": channels,
        "center_input_sample": False,
        "cross_attention_dim": unet.context_dim,
        "down_block_types": down,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": unet.in_channels,
        "layers_per_block": unet.num_res_blocks,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-5,
        "norm_num_groups": unet.norm_num_groups,
        "out_channels": unet.out_channels,
        "resnet_time_scale_shift": "default",
        # The last one is the middle block's too; a level without attention ignores it.
        "transformer_layers_per_block": [*unet.transformer_depth[:-1], unet.middle_depth],
        "up_block_types": up,
        "use_linear_projection": unet.use_linear_in_transformer,
    }


def _autoencoder(config: ModelConfig) -> dict[str, Any]:
    vae = config.vae
    levels = len(vae.channel_mult)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [mult * vae.channels for mult in vae.channel_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": vae.latent_channels,
        "layers_per_block": vae.num_res_blocks,
        "norm_num_groups": vae.norm_num_groups,
        "sample_size": config.resolution,
        "scaling_factor": vae.scale_factor,
    }


def _text_encoder(encoder: TextEncoderConfig, activation: str) -> dict[str, Any]:
    """Return a config as published with SDXL, whose `eos_token_id` 2 makes transformers pool at the largest id."""
    return {
        "model_type": "clip_text_model",
        "hidden_size": encoder.width,
        "intermediate_size": 4 * encoder.width,
        "projection_dim": encoder.width,
        "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads,
        "max_position_embeddings": encoder.context_length,
        "vocab_size": encoder.vocab_size,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
