"""The life of one request, from its opening to its last event."""
