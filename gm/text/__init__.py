"""Prompts to token ids: CLIP's tokenizer with placeholder tokens, the prompt language, and chunks."""
