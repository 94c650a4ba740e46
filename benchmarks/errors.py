"""The error of a benchmark."""


class BenchError(Exception):
    """A benchmark cannot be run. The message is one sentence."""
