"""Measurements of speed and accuracy: `triptych bench`, and `python -m benchmarks.NAME` for the others."""
