"""Weights: the names derived from the networks, every container format, strict loading and conversion."""
