"""Drawing and learning for several people at once, behind a page or any other program that stays up."""
