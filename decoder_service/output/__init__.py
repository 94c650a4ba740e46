"""From tokens to the deltas that are sent."""
