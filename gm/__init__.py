"""SDXL textual inversion on MindSpore."""
