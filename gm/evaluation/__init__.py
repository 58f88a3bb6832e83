"""Scores of embeddings: generated images compared with real ones and with their prompts."""
