"""The gRPC interface of the decoder service."""
