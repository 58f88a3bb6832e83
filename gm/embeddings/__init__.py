"""A learned word: its rows in both text encoders, its placeholder, its file."""
