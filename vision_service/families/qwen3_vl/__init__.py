"""Qwen3-VL: how its media are cut into patches, and its encoder."""
