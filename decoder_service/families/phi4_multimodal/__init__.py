"""Phi-4-multimodal."""
