"""What goes wrong in a benchmark."""


class BenchError(Exception):
    """A benchmark cannot be run: one sentence."""
