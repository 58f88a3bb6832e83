"""Words to ids: CLIP's tokenizer with its vocabulary, and placeholders for learned words."""
