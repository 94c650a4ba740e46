"""The demo: a small trained Qwen3-VL checkpoint, its examples, and its evaluation."""
