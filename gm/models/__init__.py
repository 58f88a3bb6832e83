"""Networks of SDXL and Stable Diffusion 1 and 2; attributes have the published names, so no mapping is needed."""
