"""Decoder graphs on plain ONNX Runtime, and operators of our own for them."""
