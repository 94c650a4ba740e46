"""Qwen3, text only: the language model of Qwen3-VL without an encoder."""
