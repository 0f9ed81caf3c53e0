"""Streams of small tasks for a model that was made for them, what learns from them, and how that is scored."""
