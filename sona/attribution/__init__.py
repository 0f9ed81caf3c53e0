"""Which memories in a context matter to the model's responses, and which answers are worth moving into the weights."""
