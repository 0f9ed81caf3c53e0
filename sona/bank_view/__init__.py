"""How the reasoning bank is shown: tables for a terminal, a map as a page or a PNG. Patterns in, text out."""
