"""diffusers' whole SDXL pipeline on one of our models: its tokenizers, its scheduler, its way with learned words."""

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


def pipeline(reference: Reference, folder: Path) -> StableDiffusionXLPipeline:
    """Return the pipeline, pooling at the end of the text; `folder` takes the tokenizers' files."""
    for encoder in (reference.text_encoder_1, reference.text_encoder_2):
        getattr(encoder, "text_model", encoder).eos_token_id = END
    pipe = StableDiffusionXLPipeline(
        vae=reference.vae,
        text_encoder=reference.text_encoder_1,
        text_encoder_2=reference.text_encoder_2,
        tokenizer=_tokenizer(folder / "tokenizer", "<|endoftext|>"),
        tokenizer_2=_tokenizer(folder / "tokenizer_2", "!"),
        unet=reference.unet,
        scheduler=loops.scheduler(reference.config),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, EulerDiscreteScheduler)
    return pipe


def load_word(pipe: StableDiffusionXLPipeline, path: Path, word: str) -> None:
    """Load a `clip_l`/`clip_g` file as diffusers' documentation says."""
    rows = load_file(path)
    pipe.load_textual_inversion(rows["clip_l"], token=word, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    pipe.load_textual_inversion(
        rows["clip_g"], token=word, text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
    )


def load_pair(pipe: StableDiffusionXLPipeline, paths: Sequence[Path]) -> None:
    """Load a file for each encoder, each of which says its word, as diffusers' documentation says."""
    encoders = ((pipe.text_encoder, pipe.tokenizer), (pipe.text_encoder_2, pipe.tokenizer_2))
    for path, (encoder, tokenizer) in zip(paths, encoders, strict=True):
        pipe.load_textual_inversion(str(path), text_encoder=encoder, tokenizer=tokenizer)


def save_pair(rows: Sequence[np.ndarray], word: str, paths: Sequence[Path]) -> None:
    """Write a file for each encoder, as diffusers' training script for SDXL does (`save_progress`)."""
    for path, own in zip(paths, rows, strict=True):
        learned = {word: torch.nn.Parameter(torch.from_numpy(own)).detach().cpu()}
        if path.suffix == ".safetensors":
            save_file(learned, path, metadata={"format": "pt"})
        else:
            torch.save(learned, path)


@torch.no_grad()
def draw(
    pipe: StableDiffusionXLPipeline, prompts: Sequence[str], noise: np.ndarray, *, steps: int, guidance_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return (latents [N, z, h, w], unscaled by the decoder, and images uint8 [N, H, W, 3]) from `noise`."""
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
def redraw(
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
    """Return the scaled latents [N, z, h, w] that diffusers' image-to-image makes of `images`, scaled latents.

    With a `mask` [H, W], 1 where they are drawn anew, it is its inpainting.
    """
    kind = StableDiffusionXLImg2ImgPipeline if mask is None else StableDiffusionXLInpaintPipeline
    redrawing = kind(**pipe.components, force_zeros_for_empty_prompt=True, add_watermarker=False)
    redrawing.set_progress_bar_config(disable=True)
    side = noise.shape[-1] * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    last = pipe.scheduler.config.num_train_timesteps - 1
    more = {} if mask is None else {"mask_image": tensor(mask)[None, None], "height": side, "width": side}
    with mock.patch(f"{kind.__module__}.randn_tensor", return_value=tensor(noise)):
        return redrawing(
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
