"""The service that clients call, over gRPC or HTTP. It orchestrates the other two services and loads no model."""
