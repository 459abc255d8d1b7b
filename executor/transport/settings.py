"""Where and as whom to connect, and what of it may be shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

PING_S: Final = 20.0  # a half-open connection ends within a minute


@dataclass(frozen=True, slots=True)
class Settings:
    """`url` may list several servers, separated by commas.

    `ping_s`  a connection whose other end is silent is given up after three of these.
    `parser`  "fast" is `transport.fast` where it fits nats-py's version, "plain" is nats-py's own.
    """

    url: str
    creds_file: str = ""
    name: str = "executor"
    inbox_prefix: str = "_INBOX"
    connect_timeout_ms: int = 2_000
    ping_s: float = PING_S
    parser: str = "fast"

    def servers(self) -> list[str]:
        """The servers of `url`."""
        return [server.strip() for server in self.url.split(",") if server.strip()]

    def public_url(self) -> str:
        """`url` without logins."""
        return ",".join(_without_login(server) for server in self.servers())


def _without_login(url: str) -> str:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        # The part after the last @, never re-assembled from what a parser understood.
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    except ValueError:
        return "(not a url)"
