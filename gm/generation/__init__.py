"""Prompts to pictures."""
