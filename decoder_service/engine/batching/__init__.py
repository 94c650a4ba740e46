"""The engine with continuous batching: scheduling, KV-cache slots and prefix cache."""
