"""Units, and the one size that the others follow from; apart, since every sandbox loads it."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * 1024
# Envelope, retry and dead letter must fit the NATS server's default max_payload of 1 MiB.
PAYLOAD_MAX: Final = 512 * KIB
