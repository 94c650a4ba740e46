"""The exception that the exporter raises on purpose, and the texts of others in its sentences."""


class ExportError(Exception):
    """The export cannot be done; the message is one sentence that says why and what to do."""


def one_line(error: Exception) -> str:
    """The text of an exception, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]
