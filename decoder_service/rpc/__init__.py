"""The Decoder service on the wire."""
