"""The reference: SDXL by diffusers and transformers in PyTorch, which our networks and loops are measured against.

`configs` and `published` and `inputs` are NumPy only; `networks` and `loops` need PyTorch, diffusers and transformers.
"""
