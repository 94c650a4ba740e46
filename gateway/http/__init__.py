"""The OpenAI-compatible API: JSON over HTTP, with the same conductor behind it."""

from gateway.http.app import create_app
from gateway.http.server import HttpServer

__all__ = ["HttpServer", "create_app"]
