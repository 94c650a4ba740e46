"""Comparison of this engine with others, on the same weights and prompts."""
