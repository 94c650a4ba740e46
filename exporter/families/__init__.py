"""The model families that are exported: a package for each."""
