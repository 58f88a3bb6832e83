"""FLOPs and weights counted from the config, against PyTorch's counter on diffusers' networks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import costs, networks
from benchmarks.counting import Block
from gm import config as configuration
from gm.config.model import ModelConfig
from gm.config.networks import TextEncoderConfig
from tests.reference.case import Case
from tests.reference.configs import CONFIGS, STABLE_DIFFUSION

N = 2
FULL = ModelConfig()
STABLE_DIFFUSION_1 = configuration.load("configs/training/sd_v1.5_textual_inversion.yaml").model
STABLE_DIFFUSION_2 = configuration.load("configs/training/sd_v2.1_base_textual_inversion.yaml").model


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


@pytest.fixture(scope="module", params=CONFIGS | STABLE_DIFFUSION)
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """Return every small base model in turn, of each family."""
    return cases(request.param)


@pytest.fixture
def side(case: Case) -> tuple[int, int]:
    """Return latents of an odd width, where the decoder has to crop."""
    return 2 ** len(case.config.unet.channel_mult), 2 ** len(case.config.unet.channel_mult) + 3


def test_text_encoders(case: Case) -> None:
    counts = networks.text_encoders(case.config, N)
    assert len(counts) == len(case.config.text_encoders)
    for number, (name, config) in enumerate(case.config.text_encoders.items(), 1):
        model, blocks = getattr(case.reference, f"text_encoder_{number}"), counts[f"encoder {number}"]
        prompts = ids(config)
        with torch.no_grad():
            seen = counted(lambda model=model, prompts=prompts: model(prompts))
        if name == "clip_l" and case.config.family == "sdxl":
            # transformers computes the last layer too, which SDXL does not read
            seen -= next(block.flops for block in blocks if block.name == "layer")
        assert forward(blocks) == seen > 0
        assert weights(blocks) == sum(p.numel() for p in model.parameters())


def test_unet(case: Case, side: tuple[int, int]) -> None:
    config, reference = case.config, case.reference
    blocks = networks.unet(config.unet, N, side, config.text_encoder_1.context_length)
    with torch.no_grad():
        seen = counted(lambda: epsilon(case, side, pooled(config)))
    assert forward(blocks) == seen
    assert weights(blocks) == sum(p.numel() for p in reference.unet.parameters())


def pooled(config: ModelConfig) -> torch.Tensor | None:
    return torch.zeros(N, config.text_encoder_2.width) if config.has_class_embedding else None


def epsilon(case: Case, side: tuple[int, int], text: torch.Tensor | None, context: torch.Tensor | None = None) -> Any:
    config = case.config
    if context is None:
        context = torch.zeros(N, config.text_encoder_1.context_length, config.unet.context_dim)
    x = torch.zeros(N, config.unet.in_channels, *side)
    return case.reference.epsilon(x, torch.zeros(N), context, text, torch.zeros(N, 6))


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
    """Autograd computes the counted FLOPs for the gradient with respect to all encoders' vectors."""
    config, reference = case.config, case.reference
    one, two = config.text_encoder_1, config.text_encoder_2
    vectors = [torch.zeros(1, encoder.width, requires_grad=True) for encoder in (one, two)]

    def loss() -> torch.Tensor:
        # Of Stable Diffusion, `condition` reads the ids and vectors of its only encoder.
        second = ids(two if config.has_class_embedding else one)
        context, text = reference.condition(ids(one), second, torch.zeros(N, dtype=torch.long), *vectors)
        return epsilon(case, side, text, context).square().mean()

    seen = counted(lambda: loss().backward()) - counted(loss)
    blocks = list(itertools.chain(*networks.text_encoders(config, N).values()))
    blocks += networks.unet(config.unet, N, side, config.context_length)
    assert backward(blocks) == seen


def test_level_before_the_first_attention_has_no_backward_pass_without_class_input() -> None:
    """Neither has the self-attention that precedes the first cross-attention."""
    small = STABLE_DIFFUSION["small-sd1"]
    unet = dataclasses.replace(small.unet, transformer_depth=(0, 2), transformer_depth_middle=2)
    check_unet_without_weights(dataclasses.replace(small, unet=unet), (4, 6))


def test_full_size_unet_of_stable_diffusion() -> None:
    flops = check_unet_without_weights(STABLE_DIFFUSION_1, (64, 64))
    # Known without the products of attention: 339 billion multiplications for an image of 512 px.
    blocks = networks.unet(STABLE_DIFFUSION_1.unet, N, (64, 64), 77)
    products = sum(part.flops for block in blocks for part in block.parts if not part.weights)
    assert flops - products == pytest.approx(N * 2 * 339e9, rel=0.002)


def check_unet_without_weights(config: ModelConfig, side: tuple[int, int]) -> int:
    """Compare the counts of both passes with those of diffusers' UNet on the meta device; return the forward FLOPs."""
    from diffusers import UNet2DConditionModel

    from tests.reference.networks import unet_config

    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(unet_config(config)).requires_grad_(False)
        context = torch.zeros(N, config.context_length, config.unet.context_dim, requires_grad=True)
        x, timesteps = torch.zeros(N, config.unet.in_channels, *side), torch.zeros(N)

    def loss() -> torch.Tensor:
        return model(x, timesteps, context).sample.square().mean()

    blocks = networks.unet(config.unet, N, side, config.context_length)
    seen = counted(loss)
    assert forward(blocks) == seen
    assert backward(blocks) == counted(lambda: loss().backward()) - seen
    return seen


@pytest.mark.parametrize(
    ("config", "unet", "text"),
    [
        (FULL, 2_567_463_684, [123_060_480, 694_659_840]),
        (STABLE_DIFFUSION_1, 859_520_964, [123_060_480]),
        (STABLE_DIFFUSION_2, 865_910_724, [340_387_840]),  # of 23 layers, as in diffusers' folder
    ],
    ids=lambda value: value.version if isinstance(value, ModelConfig) else "",
)
def test_full_size_has_the_published_number_of_weights(config: ModelConfig, unet: int, text: list[int]) -> None:
    assert weights(networks.unet(config.unet, 1, (8, 8), 77)) == unet
    assert [weights(blocks) for blocks in networks.text_encoders(config, 1).values()] == text
    vae = networks.vae_encoder(config.vae, 1, (8, 8))
    vae += networks.vae_decoder(config.vae, 1, (1, 1))
    assert weights(vae) == 83_653_863


def test_flash_attention_and_recomputation_trade_flops_for_memory() -> None:
    plain = costs.total(costs.training(FULL, 1024, 1, "float16"))
    flash = costs.total(costs.training(FULL, 1024, 1, "float16", flash=True))
    both = costs.total(costs.training(FULL, 1024, 1, "float16", flash=True, recompute=True))
    assert plain.flops < flash.flops < both.flops
    assert plain.saved > flash.saved > both.saved
    assert plain.weights == flash.weights == both.weights
