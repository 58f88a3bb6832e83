"""Training of textual inversion embeddings."""
