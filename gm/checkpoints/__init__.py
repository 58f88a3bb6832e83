"""Checkpoints: key mapping, file formats, strict loading, conversion."""
