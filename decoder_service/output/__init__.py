"""From tokens to what the client sees."""
