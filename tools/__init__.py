"""What the repository needs for itself: not installed with the package."""
