"""What goes wrong on the command line."""


class CommandError(Exception):
    """The command failed: one sentence for stderr; none where a service said it already."""
