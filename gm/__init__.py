"""Textual inversion for SDXL and Stable Diffusion on MindSpore."""

from gm.runtime import environment

__version__ = "0.2.0"

environment.prepare()
