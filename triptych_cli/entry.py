"""Where the command `triptych` begins: signals first, then the imports that take a second."""

from __future__ import annotations

import os

from serving.signals import end_at_once_on_signals


def main() -> int:
    """Run the command line with the process's own arguments; returns the exit code."""
    end_at_once_on_signals()
    # gRPC prints a line on stderr for a failed TLS handshake, whose cause is in the command's own line.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from triptych_cli import main as commands  # noqa: PLC0415  # the slow imports

    return commands.main()
