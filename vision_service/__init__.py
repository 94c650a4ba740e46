"""Media bytes in, features out: the vision encoder as a service."""
