"""Generation and training for several users at once, independent of the web framework."""
