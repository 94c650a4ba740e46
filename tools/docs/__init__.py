"""Writes the generated parts of the pages from the code: `python -m tools.docs`; `--check` detects differences."""
