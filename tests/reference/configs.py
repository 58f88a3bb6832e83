"""Small models that differ from each other in every size that an error could depend on."""

from __future__ import annotations

from gm.config.model import ModelConfig
from gm.config.networks import TextEncoderConfig, UNetConfig, VAEConfig

# SDXL base at a tenth of its width: the published vocabulary, two residual blocks, attention on two levels.
LIKE_BASE = ModelConfig(
    version="like-base",
    resolution=64,
    unet=UNetConfig(
        model_channels=32,
        channel_mult=(1, 2, 4),
        transformer_depth=(0, 1, 2),
        num_head_channels=16,
        context_dim=32 + 40,
        adm_in_channels=40 + 6 * 32,
        norm_num_groups=32,
    ),
    text_encoder_1=TextEncoderConfig(width=32, layers=3, heads=4),
    text_encoder_2=TextEncoderConfig(width=40, layers=4, heads=5),
    vae=VAEConfig(channels=16, channel_mult=(1, 2, 4, 4), norm_num_groups=8),
)

# The fastest: attention on the first level and none below, the wider encoder first, eight latent channels.
REVERSED = ModelConfig(
    version="reversed",
    resolution=32,
    unet=UNetConfig(
        in_channels=8,
        out_channels=8,
        model_channels=24,
        channel_mult=(1, 3),
        num_res_blocks=1,
        transformer_depth=(1, 0),
        num_head_channels=12,
        context_dim=48 + 24,
        adm_in_channels=24 + 6 * 10,
        norm_num_groups=6,
    ),
    text_encoder_1=TextEncoderConfig(width=48, layers=2, heads=3),
    text_encoder_2=TextEncoderConfig(width=24, layers=3, heads=2),
    vae=VAEConfig(
        channels=12, channel_mult=(1, 3), num_res_blocks=1, latent_channels=8, norm_num_groups=3, scale_factor=0.3
    ),
)

# Four levels, a head as wide as the first level, a vocabulary and a number of positions of its own.
DEEP = ModelConfig(
    version="deep",
    resolution=64,
    unet=UNetConfig(
        model_channels=8,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=1,
        transformer_depth=(2, 0, 1, 1),
        num_head_channels=8,
        context_dim=16 + 20,
        adm_in_channels=20 + 6 * 256,
        norm_num_groups=2,
    ),
    text_encoder_1=TextEncoderConfig(width=16, layers=4, heads=1, vocab_size=300, context_length=12),
    text_encoder_2=TextEncoderConfig(width=20, layers=2, heads=4, vocab_size=300, context_length=12),
    vae=VAEConfig(channels=8, channel_mult=(1, 1, 2), num_res_blocks=1, norm_num_groups=2),
)

# A refiner: no attention on the first and the last level, and the most in the middle block. Text encoder 2 and latents
# match the base model of `tests/project.py`.
REFINER = ModelConfig(
    kind="refiner",
    version="refiner",
    resolution=16,
    unet=UNetConfig(
        model_channels=16,
        channel_mult=(1, 2, 2),
        num_res_blocks=1,
        transformer_depth=(0, 2, 0),
        transformer_depth_middle=3,
        num_head_channels=8,
        context_dim=24,
        adm_in_channels=24 + 5 * 10,
        norm_num_groups=4,
    ),
    text_encoder_2=TextEncoderConfig(width=24, layers=3, heads=2),
    vae=VAEConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_num_groups=4),
)

# Stable Diffusion 1 at a tenth of its width: eight heads at every level, and none on the last.
LIKE_SD1 = ModelConfig(
    family="sd1",
    version="like-sd1",
    resolution=64,
    unet=UNetConfig(
        model_channels=32,
        channel_mult=(1, 2, 4, 4),
        transformer_depth=(1, 1, 1, 0),
        transformer_depth_middle=1,
        context_dim=48,
        adm_in_channels=0,
        num_heads=8,
        use_linear_in_transformer=False,
    ),
    text_encoder_1=TextEncoderConfig(width=48, layers=3, heads=4),
    vae=VAEConfig(channels=16, channel_mult=(1, 2, 4, 4), norm_num_groups=8, scale_factor=0.18215),
)

# Stable Diffusion 2 likewise: heads of equal width, linear projections.
LIKE_SD2 = ModelConfig(
    family="sd2",
    version="like-sd2",
    resolution=64,
    unet=UNetConfig(
        model_channels=32,
        channel_mult=(1, 2, 4, 4),
        transformer_depth=(1, 1, 1, 0),
        transformer_depth_middle=1,
        num_head_channels=16,
        context_dim=40,
        adm_in_channels=0,
    ),
    text_encoder_1=TextEncoderConfig(width=40, layers=4, heads=5),
    vae=VAEConfig(channels=16, channel_mult=(1, 2, 4, 4), norm_num_groups=8, scale_factor=0.18215),
)

# The fastest of that kind: convolutions around two blocks, three in the middle, a vocabulary of its own.
SMALL_SD1 = ModelConfig(
    family="sd1",
    version="small-sd1",
    resolution=32,
    unet=UNetConfig(
        model_channels=24,
        channel_mult=(1, 2),
        num_res_blocks=1,
        transformer_depth=(2, 0),
        transformer_depth_middle=3,
        context_dim=20,
        adm_in_channels=0,
        norm_num_groups=6,
        num_heads=3,
        use_linear_in_transformer=False,
    ),
    text_encoder_1=TextEncoderConfig(width=20, layers=2, heads=4, vocab_size=300, context_length=12),
    vae=VAEConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_num_groups=4, scale_factor=0.18215),
)

STABLE_DIFFUSION = {config.version: config for config in (LIKE_SD1, LIKE_SD2, SMALL_SD1)}
CONFIGS = {config.version: config for config in (LIKE_BASE, REVERSED, DEEP)}  # base models
ALL = CONFIGS | {REFINER.version: REFINER}
SEEDS = {"like-base": 1, "reversed": 2, "deep": 3, "refiner": 4, "like-sd1": 5, "like-sd2": 6, "small-sd1": 7}
