"""What the decoder service knows of a model family: how its prompts are laid out."""
