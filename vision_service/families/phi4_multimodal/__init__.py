"""Phi-4-multimodal: preprocessing of its images, and its encoder."""
