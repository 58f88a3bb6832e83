"""Learning the rows of a new word."""
