"""Networks of the SDXL family; attributes have the published checkpoint's names, so no name mapping is needed."""
