"""Training data: image folders with masks and captions, prompt templates, buckets and the latent cache."""
