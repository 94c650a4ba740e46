"""Measurements: what is fast, and what is exact. `triptych bench`, and `python -m benchmarks.NAME` for the rest."""
