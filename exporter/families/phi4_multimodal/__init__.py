"""Phi-4-multimodal: images and text; its speech encoder is left out."""
