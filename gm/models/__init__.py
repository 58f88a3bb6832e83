"""The networks of SDXL; attributes carry the published checkpoint's names, so the network is the table of names."""
