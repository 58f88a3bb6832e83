"""FLOPs and weights counted from the config, against PyTorch's counter on diffusers' networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import costs, networks
from benchmarks.counting import Block
from gm.config.model import ModelConfig, TextEncoderConfig
from tests.reference.case import Case

N = 2
FULL = ModelConfig()


def counted(run: Callable[[], Any]) -> int:
    """Return the FLOPs of `run`; the counter does not know the CPU's own attention kernel."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def forward(blocks: list[Block]) -> int:
    return sum(block.flops for block in blocks)


def backward(blocks: list[Block]) -> int:
    return sum(block.backward for block in blocks)


def weights(blocks: list[Block]) -> int:
    return sum(part.weights + part.weights_float32 for block in blocks for part in block.parts)


def ids(config: TextEncoderConfig) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (N, config.context_length))


@pytest.fixture
def side(case: Case) -> tuple[int, int]:
    """Return latents of an odd width, where the decoder has to crop."""
    return 2 ** len(case.config.unet.channel_mult), 2 ** len(case.config.unet.channel_mult) + 3


def test_text_encoders(case: Case) -> None:
    for number, count in ((1, networks.text_encoder_1), (2, networks.text_encoder_2)):
        config, model = (getattr(owner, f"text_encoder_{number}") for owner in (case.config, case.reference))
        blocks, prompts = count(config, N), ids(config)
        with torch.no_grad():
            seen = counted(lambda model=model, prompts=prompts: model(prompts))
        if number == 1:  # transformers computes the last layer too, which SDXL does not read
            seen -= next(block.flops for block in blocks if block.name == "layer")
        assert forward(blocks) == seen > 0
        assert weights(blocks) == sum(p.numel() for p in model.parameters())


def test_unet(case: Case, side: tuple[int, int]) -> None:
    config, reference = case.config, case.reference
    blocks = networks.unet(config.unet, N, side, config.text_encoder_1.context_length)
    with torch.no_grad():
        seen = counted(lambda: epsilon(case, side, torch.zeros(N, config.text_encoder_2.width)))
    assert forward(blocks) == seen
    assert weights(blocks) == sum(p.numel() for p in reference.unet.parameters())


def epsilon(case: Case, side: tuple[int, int], pooled: torch.Tensor, context: torch.Tensor | None = None) -> Any:
    config = case.config
    if context is None:
        context = torch.zeros(N, config.text_encoder_1.context_length, config.unet.context_dim)
    x = torch.zeros(N, config.unet.in_channels, *side)
    return case.reference.epsilon(x, torch.zeros(N), context, pooled, torch.zeros(N, 6))


def test_vae(case: Case) -> None:
    config, vae = case.config.vae, case.reference.vae
    height, width = 2 * config.downsample_factor, 3 * config.downsample_factor
    encoder = networks.vae_encoder(config, N, (height, width))
    decoder = networks.vae_decoder(config, N, (2, 3))
    with torch.no_grad():
        assert forward(encoder) == counted(lambda: vae.encode(torch.zeros(N, 3, height, width)))
        latents = torch.zeros(N, config.latent_channels, 2, 3)
        assert forward(decoder) == counted(lambda: vae.decode(latents))
    assert weights(encoder) + weights(decoder) == sum(p.numel() for p in vae.parameters())


def test_backward_pass_to_the_embedding_vectors(case: Case, side: tuple[int, int]) -> None:
    """Autograd computes the counted FLOPs for the gradient with respect to both encoders' vectors."""
    config, reference = case.config, case.reference
    one, two = config.text_encoder_1, config.text_encoder_2
    vectors = [torch.zeros(1, encoder.width, requires_grad=True) for encoder in (one, two)]

    def loss() -> torch.Tensor:
        context, pooled = reference.condition(ids(one), ids(two), torch.zeros(N, dtype=torch.long), *vectors)
        return epsilon(case, side, pooled, context).square().mean()

    seen = counted(lambda: loss().backward()) - counted(loss)
    blocks = networks.text_encoder_1(one, N) + networks.text_encoder_2(two, N)
    blocks += networks.unet(config.unet, N, side, one.context_length)
    assert backward(blocks) == seen


def test_full_size_has_the_published_number_of_weights() -> None:
    assert weights(networks.unet(FULL.unet, 1, (8, 8), 77)) == 2_567_463_684
    assert weights(networks.text_encoder_1(FULL.text_encoder_1, 1)) == 123_060_480
    assert weights(networks.text_encoder_2(FULL.text_encoder_2, 1)) == 694_659_840
    vae = networks.vae_encoder(FULL.vae, 1, (8, 8))
    vae += networks.vae_decoder(FULL.vae, 1, (1, 1))
    assert weights(vae) == 83_653_863


def test_flash_attention_and_recomputation_trade_flops_for_memory() -> None:
    plain = costs.total(costs.training(FULL, 1024, 1, "float16"))
    flash = costs.total(costs.training(FULL, 1024, 1, "float16", flash=True))
    both = costs.total(costs.training(FULL, 1024, 1, "float16", flash=True, recompute=True))
    assert plain.flops < flash.flops < both.flops
    assert plain.saved > flash.saved > both.saved
    assert plain.weights == flash.weights == both.weights
