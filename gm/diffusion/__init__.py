"""Mathematics of diffusion without a network: schedule, samplers, guidance, losses; for any kind of array."""
