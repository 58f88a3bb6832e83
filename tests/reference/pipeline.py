"""diffusers' whole pipeline on one of our models: its tokenizers, its scheduler, its textual inversion loader."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from gm.text import bpe
from gm.text.bpe import END, START
from tests.reference import loops
from tests.reference.networks import Reference, tensor

# What the tokenizers pad with, by encoder.
_PADDING = {"clip_l": "<|endoftext|>", "clip_g": "!", "clip_h": "!"}
_SDXL = {"force_zeros_for_empty_prompt": True, "add_watermarker": False}
_STABLE_DIFFUSION = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def diffusers_pipeline(reference: Reference, folder: Path) -> StableDiffusionXLPipeline | StableDiffusionPipeline:
    """Return the pipeline, pooling at the end of the text; `folder` is for the tokenizers' files."""
    components = {"vae": reference.vae, "unet": reference.unet, "scheduler": loops.scheduler(reference.config)}
    for name, encoder, suffix in zip(
        reference.config.text_encoders, (reference.text_encoder_1, reference.text_encoder_2), ("", "_2"), strict=False
    ):
        getattr(encoder, "text_model", encoder).eos_token_id = END
        components[f"text_encoder{suffix}"] = encoder
        components[f"tokenizer{suffix}"] = _tokenizer(folder / f"tokenizer{suffix}", _PADDING[name])
    is_sdxl = reference.text_encoder_2 is not None
    kind, options = (StableDiffusionXLPipeline, _SDXL) if is_sdxl else (StableDiffusionPipeline, _STABLE_DIFFUSION)
    pipe = kind(**components, **options)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, EulerDiscreteScheduler)
    return pipe


def load_embedding(pipe: StableDiffusionXLPipeline, path: Path, token: str) -> None:
    """Load a `clip_l`/`clip_g` file as diffusers' documentation says."""
    vectors = load_file(path)
    encoders = {"clip_l": (pipe.text_encoder, pipe.tokenizer), "clip_g": (pipe.text_encoder_2, pipe.tokenizer_2)}
    for name, (encoder, tokenizer) in encoders.items():
        pipe.load_textual_inversion(vectors[name], token=token, text_encoder=encoder, tokenizer=tokenizer)


def load_embedding_pair(pipe: StableDiffusionXLPipeline, paths: Sequence[Path]) -> None:
    """Load a file for each encoder, each of which holds its placeholder token, as diffusers' documentation says."""
    encoders = ((pipe.text_encoder, pipe.tokenizer), (pipe.text_encoder_2, pipe.tokenizer_2))
    for path, (encoder, tokenizer) in zip(paths, encoders, strict=True):
        pipe.load_textual_inversion(str(path), text_encoder=encoder, tokenizer=tokenizer)


def save_embedding_pair(vectors: Sequence[np.ndarray], token: str, paths: Sequence[Path]) -> None:
    """Write a file for each encoder, as diffusers' training script for SDXL does (`save_progress`)."""
    for path, each in zip(paths, vectors, strict=True):
        tensors = {token: torch.nn.Parameter(torch.from_numpy(each)).detach().cpu()}
        if path.suffix == ".safetensors":
            save_file(tensors, path, metadata={"format": "pt"})
        else:
            torch.save(tensors, path)


@torch.no_grad()
def generate(
    pipe: StableDiffusionXLPipeline, prompts: Sequence[str], noise: np.ndarray, *, steps: int, guidance_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return (scaled latents [N, z, h, w], images uint8 [N, H, W, 3]) from `noise`."""
    side = noise.shape[-1] * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    last = pipe.scheduler.config.num_train_timesteps - 1
    latents = pipe(
        prompt=list(prompts),
        timesteps=np.floor(np.linspace(last, 0, steps, endpoint=False)).astype(int).tolist(),
        guidance_scale=guidance_scale,
        latents=tensor(noise),
        height=side,
        width=side,
        original_size=(side, side),
        target_size=(side, side),
        output_type="latent",
    ).images
    images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    levels = (images * 127.5 + 127.5).clamp(0, 255).round().permute(0, 2, 3, 1)
    return latents.numpy(), levels.to(torch.uint8).numpy()


@torch.no_grad()
def generate_from_images(
    pipe: StableDiffusionXLPipeline,
    prompts: Sequence[str],
    images: np.ndarray,
    noise: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    steps: int,
    strength: float,
    guidance_scale: float,
) -> np.ndarray:
    """Return the scaled latents [N, z, h, w] of diffusers' image-to-image from `images`, scaled latents.

    With a `mask` [H, W], 1 where to inpaint, they are of its inpainting.
    """
    kind = StableDiffusionXLImg2ImgPipeline if mask is None else StableDiffusionXLInpaintPipeline
    pipe_from_images = kind(**pipe.components, force_zeros_for_empty_prompt=True, add_watermarker=False)
    pipe_from_images.set_progress_bar_config(disable=True)
    side = noise.shape[-1] * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    last = pipe.scheduler.config.num_train_timesteps - 1
    more = {} if mask is None else {"mask_image": tensor(mask)[None, None], "height": side, "width": side}
    with mock.patch(f"{kind.__module__}.randn_tensor", return_value=tensor(noise)):
        return pipe_from_images(
            prompt=list(prompts),
            image=tensor(images),
            timesteps=np.floor(np.linspace(last, 0, steps, endpoint=False)).astype(int).tolist(),
            strength=strength,
            guidance_scale=guidance_scale,
            original_size=(side, side),
            target_size=(side, side),
            output_type="latent",
            **more,
        ).images.numpy()


def _tokenizer(folder: Path, padding: str) -> CLIPTokenizer:
    """Return CLIP's tokenizer from the vocabulary file beside ours, which is the published one."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(bpe._VOCABULARY_FILE, "rt", encoding="utf-8") as lines:
        merges = [line.rstrip("\n") for line in islice(lines, 1, 1 + START - 512)]
    characters = [chr(b) for b in bpe._PRINTABLE] + [chr(256 + k) for k in range(256 - len(bpe._PRINTABLE))]
    words = [*characters, *(c + "</w>" for c in characters), *(m.replace(" ", "") for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    return CLIPTokenizer.from_pretrained(folder, pad_token=padding, model_max_length=77)
