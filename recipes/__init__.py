"""How committed models were made: run from the repository, not installed with the package."""
