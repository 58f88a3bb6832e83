"""Reference implementation: SDXL by diffusers and transformers in PyTorch.

`configs` and `published` and `inputs` are NumPy only; `networks` and `loops` need PyTorch, diffusers and transformers.
"""
