"""The address that a server listens on."""

from __future__ import annotations

import ipaddress
import os
import socket

from sona.errors import ConfigError


def bind(host: str, port: int, *, is_open: bool = False) -> socket.socket:
    """A socket on the address; nothing is let in yet.

    Args:
        host: a name or an address.
        port: 0: any that is free.
        is_open: whether anyone who reaches it would be let in, though nobody said so.

    Raises:
        ConfigError: the address is taken or none, or is open to others than this machine.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError, OverflowError) as error:
        raise ConfigError(f"address {host!r}, port {port}: {error}") from None
    if is_open and not is_loopback(str(address[0])):
        raise ConfigError(
            f"--host {host} --no-token would let in anyone who reaches this machine; ask for a token, serve on "
            "127.0.0.1, or say --anyone"
        )
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        why = os.strerror(error.errno or 0)
        raise ConfigError(f"address {host}, port {port}: {why}; choose another --port (0: any)") from None
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
