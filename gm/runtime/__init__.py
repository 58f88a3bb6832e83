"""Device, processes, compiled graphs, random numbers, atomic files."""
