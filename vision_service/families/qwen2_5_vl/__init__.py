"""Qwen2.5-VL: preprocessing of its media, and its encoder."""
