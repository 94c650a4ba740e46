"""Other engines, and this one, raced on the same weights and the same prompts."""
