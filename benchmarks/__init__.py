"""Measurements: what is fast, and what is exact. Run as `python -m benchmarks.NAME`."""
