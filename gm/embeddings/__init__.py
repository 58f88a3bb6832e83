"""Embeddings: the trained vectors of a placeholder token in each text encoder, and their files."""
