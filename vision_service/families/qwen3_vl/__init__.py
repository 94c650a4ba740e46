"""Qwen3-VL: preprocessing of its media, and its encoder."""
