"""The decoder service: messages and features in, text out."""
