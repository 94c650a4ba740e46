"""Tells whether a port speaks TLS, to explain why a call to it has failed."""

from __future__ import annotations

import socket
import ssl

_SECONDS = 3.0


def speaks_tls(address: str) -> bool | None:
    """Begin a TLS handshake, without a check of the certificate.

    Args:
        address: `host:port`.

    Returns:
        Whether the other end goes along; None if there is no connection, or no answer.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _SECONDS) as connection:
            try:
                context.wrap_socket(connection).close()
            except TimeoutError:
                return None
            except OSError:  # what came is no TLS, or the other end has closed the connection
                return False
            return True
    except (OSError, OverflowError, UnicodeError):
        return None
