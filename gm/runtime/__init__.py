"""What the toolkit runs on: device, processes, compiled graphs, random numbers, atomic files, progress."""
