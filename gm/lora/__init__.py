"""LoRA files: low-rank changes of a model's weights, merged into them while they are loaded."""
