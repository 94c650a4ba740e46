"""The one exception that the exporter raises on purpose."""


class ExportError(Exception):
    """The export cannot be done; the message is one sentence that says why and what to do."""
