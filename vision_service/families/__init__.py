"""The supported model families: a package for each."""
