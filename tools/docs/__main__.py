"""`python -m tools.docs` writes the generated parts of the pages; `--check` fails if they differ.

`--run` runs the commands of the quick start and writes their outputs into it; that takes half a minute.
"""

from __future__ import annotations

import sys

from tools.docs import transcript
from tools.docs.pages import stale, write


def main(arguments: list[str]) -> int:
    """Run the command.

    Args:
        arguments: Empty, `--check` or `--run`.

    Returns:
        The exit code: 0 success, 1 stale, 2 wrong usage.
    """
    if arguments == ["--check"]:
        names = stale()
        if names:
            sys.stderr.write(f"documentation is out of date, run `make docs`: {', '.join(names)}\n")
        return 1 if names else 0
    if arguments == ["--run"]:
        transcript.write()
        return 0
    if arguments:
        sys.stderr.write("usage: python -m tools.docs [--check | --run]\n")
        return 2
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
