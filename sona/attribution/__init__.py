"""Which memories an answer depends on, and which answers are worth moving into the weights."""
