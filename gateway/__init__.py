"""The service that clients call, over gRPC or HTTP. It coordinates the other two services and loads no model."""
