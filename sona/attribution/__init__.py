"""Which memories in a context matter to the model's responses, and how much."""
