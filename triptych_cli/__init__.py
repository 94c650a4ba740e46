"""The command line `triptych`: one module for each of its larger commands."""
