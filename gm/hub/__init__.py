"""Publishing of an embedding: a folder of files for every program, a model card, images, and its upload."""
