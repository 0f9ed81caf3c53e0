"""Served models: load, answer, embed, swap adapters."""
