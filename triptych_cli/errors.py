"""The error of a command."""


class CommandError(Exception):
    """The command failed. The message is one sentence for stderr, or empty if a service has printed the cause."""
