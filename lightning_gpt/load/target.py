"""Where requests go, and that this is the machine itself unless a person says otherwise."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Target:
    """A server's address."""

    host: str
    """As the header Host names it, with the port."""
    name: str
    """Host alone, for certificates."""
    port: int
    path: str
    """What stands before /completions, such as /v1."""
    addresses: tuple[str, ...]
    """Numbers that the name stands for, in the order to try."""
    secure: bool = False

    def ssl_context(self) -> ssl.SSLContext | None:
        """For https."""
        return ssl.create_default_context() if self.secure else None


def parse_target(url: str, allow_remote: bool) -> Target:
    """Reads http://HOST:PORT, with or without /v1 at its end, and looks the name up.

    Raises:
        ValueError: it is no such URL, nobody knows the name, or it is not this machine and allow_remote is false.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    name = parts.hostname
    if parts.scheme not in ("http", "https") or not name or parts.query or parts.fragment or parts.username:
        raise ValueError(f"url={url} must be http://HOST:PORT, such as http://127.0.0.1:8000")
    secure = parts.scheme == "https"
    port = port or (443 if secure else 80)
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"url={url}: the name {name!r} leads nowhere ({error})") from None
    addresses = tuple(dict.fromkeys(entry[4][0] for entry in found))
    if not allow_remote and not all(ipaddress.ip_address(one.partition("%")[0]).is_loopback for one in addresses):
        raise ValueError(
            f"url={url} is not this machine: load only servers that are yours to load, then say --allow_remote true"
        )
    path = parts.path.rstrip("/")
    bare = f"[{name}]" if ":" in name else name.encode("idna").decode("ascii")
    host = bare if port == (443 if secure else 80) else f"{bare}:{port}"
    return Target(host, name, port, path or "/v1", addresses, secure)
