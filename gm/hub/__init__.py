"""A learned word as others get it: a folder of files for every program, a card and images, and its way out."""
