"""The parts of the decoder service that depend on the model family: layout and positions of prompts."""
