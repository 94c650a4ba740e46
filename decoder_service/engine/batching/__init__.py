"""The engine that answers many requests at once: what is computed next, and where it lies."""
