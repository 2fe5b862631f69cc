"""Check the address at which the page is served."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from quantface_arch.errors import UsageError

__all__ = ["Address", "free_port"]

_LARGEST_PORT = 65535


@dataclass(frozen=True)
class Address:
    """The address at which the page is served.

    Attributes:
        host, port: address to listen on; port 0 selects a free one.
        root_path: path or address at which a reverse proxy serves the page; empty without one.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    root_path: str = ""


def free_port(address: Address) -> int:
    """Return the port if the server can listen on it; for port 0, return a free one.

    Raises:
        UsageError: the server cannot listen there.
    """
    host, port = address.host, address.port
    if port > _LARGEST_PORT:
        raise UsageError(f"--port {port}: at most {_LARGEST_PORT} is allowed")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family) as listening:
            return listening.getsockname()[1]
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"cannot listen on --host {host} --port {port}: {reason}") from error
