"""The mathematics of diffusion, with no network inside; arrays may be NumPy's or MindSpore's."""
