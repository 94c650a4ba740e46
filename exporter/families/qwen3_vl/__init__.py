"""Qwen3-VL: the checkpoints that are accepted, the graphs of the decoder, and the settings around them."""
