"""One request, from its opening to its last event."""
