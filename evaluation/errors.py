"""What goes wrong in an evaluation."""


class EvaluationError(Exception):
    """The evaluation cannot be run: one sentence."""
