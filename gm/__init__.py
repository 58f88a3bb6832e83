"""SDXL textual inversion on MindSpore."""

__version__ = "0.2.0"
