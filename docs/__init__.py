"""The pages, and what writes their generated parts from the code: `python -m docs`, and `--check` to look for drift."""
