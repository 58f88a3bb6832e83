"""Workers that run PyTorch and diffusers: python -m benchmarks.reference step|sampling CASE.

The training step follows diffusers' textual-inversion examples for SDXL and for Stable Diffusion: it encodes the images
in every step, trains the whole token table of each text encoder with AdamW, and restores the embeddings of all other
tokens afterwards. In bfloat16 UNet and VAE are cast, and the rest runs under autocast, as with --mixed_precision bf16.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler

from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.workers import Work, serve
from gm.config.model import ModelConfig
from gm.data import image_folder, templates
from gm.runtime import rng
from gm.text.tokenizer import PADDING_IDS, VOCAB_SIZE, Tokenizer
from tests.reference import loops, networks
from tests.reference.networks import Reference


def product_speed() -> dict[str, float]:
    """Return the FLOPs a second of PyTorch's matrix product by precision."""
    speeds = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.rand(cases.PRODUCT_SIDE, cases.PRODUCT_SIDE).to(dtype)
        speeds[name] = cases.product_speed(functools.partial(torch.matmul, a, a))
    return speeds


def step(case: Case) -> tuple[dict[str, Any], Work]:
    """Return a worker that trains: per piece `accumulation` steps and one update."""
    facts, reference = _start(case)
    trainer = _Trainer(case, reference)

    def work() -> dict[str, Any]:
        started = time.perf_counter()
        loss = trainer.update()
        return {"seconds": (time.perf_counter() - started) / case.accumulation, "loss": loss}

    return facts, work


class _Trainer:
    """Training loop state: text encoders with the added embedding vectors, optimizer, images and prompts."""

    def __init__(self, case: Case, reference: Reference) -> None:
        self.case, self.reference = case, reference
        self.encoders = [each for each in (reference.text_encoder_1, reference.text_encoder_2) if each is not None]
        tables = []
        for encoder in self.encoders:
            encoder.resize_token_embeddings(VOCAB_SIZE + case.vectors, mean_resizing=False)
            table = encoder.get_input_embeddings().weight
            tables.append(table.requires_grad_(True))
            encoder.train()
        self.tables = tables
        self.optimizer = torch.optim.AdamW(tables, lr=1e-3)
        self.originals = [table.detach().clone() for table in tables]
        self.is_published = torch.arange(VOCAB_SIZE + case.vectors) < VOCAB_SIZE
        self.noise_scheduler = DDPMScheduler(**loops.beta_options(reference.config))
        images = image_folder.load_images(case.model.images, case.resolution)
        self.images = torch.from_numpy(np.stack([image.pixels for image in images]))
        six = [[*p.original_size, *p.crop_top_left, case.resolution, case.resolution] for p in images]
        self.sizes = torch.tensor(six, dtype=torch.float32)
        self.ids = _prompts(case, reference.config)
        self.samples = count()

    def update(self) -> float:
        """Take `accumulation` steps and update the embedding vectors; return the last loss."""
        for _ in range(self.case.accumulation):
            with _autocast(self.case):
                loss = self._loss()
            (loss / self.case.accumulation).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for table, original in zip(self.tables, self.originals, strict=True):
                table[self.is_published] = original[self.is_published]
        return loss.item()

    def _loss(self) -> torch.Tensor:
        numbers = [next(self.samples) for _ in range(self.case.batch)]
        images = [number % len(self.images) for number in numbers]
        prompts = [number % len(self.ids[0]) for number in numbers]
        vae = self.reference.vae
        latents = (
            vae.encode(self.images[images].to(vae.dtype)).latent_dist.sample().detach() * vae.config.scaling_factor
        )
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self.reference.config.schedule.timesteps, (self.case.batch,))
        noisy, target = loops.noised(self.noise_scheduler, latents, noise, timesteps)
        context, pooled = self._condition(prompts)
        prediction = self.reference.epsilon(noisy, timesteps, context, pooled, self.sizes[images])
        return torch.nn.functional.mse_loss(prediction.float(), target.float())

    def _condition(self, prompts: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the context and, of SDXL, the pooled output of the prompts with these numbers."""
        traits = self.reference.config.traits
        inner = not traits.final_hidden_state
        outputs = [
            encoder(ids[prompts], output_hidden_states=inner)
            for encoder, ids in zip(self.encoders, self.ids, strict=True)
        ]
        context = torch.cat([out.hidden_states[-2] if inner else out.last_hidden_state for out in outputs], dim=-1)
        return context, outputs[-1].text_embeds if traits.class_embedding else None


def sampling(case: Case) -> tuple[dict[str, Any], Work]:
    """Return a worker that generates `batch` images per piece, with the timesteps of this toolkit."""
    from tests.reference import pipeline

    facts, reference = _start(case)
    with tempfile.TemporaryDirectory() as tokenizers:
        pipe = pipeline.diffusers_pipeline(reference, Path(tokenizers))
    vae, last = reference.config.vae, reference.config.schedule.timesteps - 1
    side = case.resolution // vae.downsample_factor
    times = np.floor(np.linspace(last, 0, case.steps, endpoint=False)).astype(int).tolist()
    noise = np.stack([rng.normal((vae.latent_channels, side, side), k, rng.INITIAL_NOISE) for k in range(case.batch)])

    def work() -> dict[str, Any]:
        ticks: list[float] = []

        def tick(_: Any, number: int, time_: Any, values: dict[str, Any]) -> dict[str, Any]:
            ticks.append(time.perf_counter())
            return values

        with torch.no_grad(), _autocast(case):
            generate(tick)
        return {"steps": cases.between(ticks)}

    def generate(tick: Callable[..., dict[str, Any]]) -> None:
        pipe(
            prompt=[cases.PROMPT] * case.batch,
            timesteps=times,
            guidance_scale=case.guidance,
            latents=torch.from_numpy(noise).to(reference.unet.dtype),
            height=case.resolution,
            width=case.resolution,
            callback_on_step_end=tick,
        )

    return facts, work


def _start(case: Case) -> tuple[dict[str, Any], Reference]:
    """Return the machine's speed and the networks."""
    torch.set_num_threads(os.cpu_count() or 1)  # tests.reference.networks leaves one
    torch.manual_seed(0)
    facts = {"product_flops_per_second": product_speed()}
    with tempfile.TemporaryDirectory() as configs:
        loaded = networks.load(case.config().model, case.model.source, Path(configs))
    if _in_bfloat16(case):
        loaded.unet.to(torch.bfloat16)
        loaded.vae.to(torch.bfloat16)
    if case.reference.endswith("compiled"):
        loaded.unet.compile()
    return facts, loaded


def _in_bfloat16(case: Case) -> bool:
    return case.reference.startswith("bfloat16")


def _autocast(case: Case) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, enabled=_in_bfloat16(case))


def _prompts(case: Case, config: ModelConfig) -> list[torch.Tensor]:
    """Return the ids of every template with the placeholder, for each encoder."""
    tokenizer = Tokenizer()
    tokenizer.add_placeholder(cases.PLACEHOLDER, case.vectors)
    prompts = [templates.fill(line, cases.PLACEHOLDER) for line in templates.load("object", None)]
    return [torch.from_numpy(tokenizer(prompts, PADDING_IDS[name])).long() for name in config.text_encoders]


def main() -> None:
    cases.lift_onednn_limit()
    kind, case = sys.argv[1], cases.from_json(sys.argv[2])
    serve(lambda: {"step": step, "sampling": sampling}[kind](case))


if __name__ == "__main__":
    main()
