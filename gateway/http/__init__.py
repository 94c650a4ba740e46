"""The OpenAI-compatible door: JSON over HTTP in front of the same conductor."""

from gateway.http.app import create_app
from gateway.http.server import HttpServer

__all__ = ["HttpServer", "create_app"]
