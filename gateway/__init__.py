"""The front door: gRPC and HTTP. It conducts the vision service and the decoder, and holds no model itself."""
