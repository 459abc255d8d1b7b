"""What a scan finds in a module's bytes, and what it leaves alone."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Final

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from executor.core import scan, wasm
from executor.core.signature import SecretKey

HEADER: Final = b"\0asm\x01\0\0\0"
KEY: Final = SecretKey(bytes(range(32)))
RANDOM: Final = "Zx9Kq2Lm7Vt4Rw8Ny3Bp6Hd1Jf5Gs0CaEuIoTrXz"


def module(content: bytes, section: str = "") -> bytes:
    """A module with these bytes as data, or in a custom section."""
    if section:
        return HEADER + wasm.custom(section, content)
    return HEADER + b"\x0b" + wasm.uleb(len(content)) + content


def kinds(data: bytes, *, grave: bool = True) -> list[str]:
    """The kinds of what is found."""
    return [finding.kind for finding in scan.scan(data) if finding.grave is grave]


def _der() -> bytes:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def planted() -> Iterator[tuple[str, bytes]]:
    """A secret of each kind, in pieces, so that none stands in this file."""
    yield "private key", KEY.pem()
    yield "private key", _der()
    yield "private key", b"-----BEGIN OPENSSH " + b"PRIVATE KEY-----"
    yield "age key", b"AGE-SECRET-" + b"KEY-1" + b"Q" * 58
    yield "NATS seed", b"SU" + base64.b32encode(bytes(range(35)))
    yield "AWS key", b"AKIA" + b"Q7" * 8
    yield "GitHub token", b"ghp" + f"_{RANDOM[:36]}".encode()
    yield "GitLab token", b"glpat" + f"-{RANDOM[:20]}".encode()
    yield "Slack token", b"xoxb" + b"-1234567890-abcdef"
    yield "Google key", b"AIza" + RANDOM[:35].encode()
    yield "Stripe key", b"sk_" + f"live_{RANDOM[:24]}".encode()
    yield "JSON web token", b"eyJ" + b"hbGciOiJI.eyJ" + b"zdWIiOiIx." + RANDOM[:20].encode()
    yield "login in a URL", b"nats://user:" + b"pass@example:4222"
    yield "authorisation header", b"Authorization: Bearer " + RANDOM[:30].encode()
    yield "assigned secret", f'password = "{RANDOM[:16]}"'.encode()
    yield "assigned secret", f"API_KEY={RANDOM[:16]}".encode()
    yield "assigned secret", f'secret": "{RANDOM[:16]}"}}'.encode()


@pytest.mark.parametrize(("kind", "secret"), list(planted()))
@pytest.mark.parametrize("section", ["", "notes"])
def test_a_planted_secret_is_found(kind: str, secret: bytes, section: str) -> None:
    """Keys and tokens are found in data and in custom sections, by kind and place."""
    data = module(b"\0text before " + secret + b"\0 and behind", section)
    (finding,) = [each for each in scan.scan(data) if each.grave]
    assert finding.kind == kind
    assert finding.where == (section or "data")
    assert data[finding.offset : finding.offset + 3] == secret[:3]


@pytest.mark.parametrize(
    "harmless",
    [
        b"password: {}", b"the password must be longer", b"token = %s", b"secret: changeme",
        b"password=aaaaaaaa1", b"api_key = <your key here>", b"-----BEGIN PUBLIC KEY-----",
        b"https://example.org/a:b@c", b"nats://127.0.0.1:4222", KEY.public.text.encode(),
        b"sha256:" + b"ab" * 32, b"SUBMITTER OF A TASK", b"tokenizer", b"AKIA", b"eyJ.eyJ.",
    ],
)  # fmt: skip
def test_a_harmless_text_is_left_alone(harmless: bytes) -> None:
    """Messages, placeholders, digests and public keys are no secrets."""
    assert kinds(module(b"\0 " + harmless + b"\0")) == []


def test_other_things_are_notes() -> None:
    """Sections that nobody knows and paths of a host are worth a look, and no reason to refuse."""
    data = module(b"/home/somebody/src/task.c", ".debug_str")
    assert kinds(data) == []
    assert kinds(data, grave=False) == ["unknown section", "path of a host"]
    assert kinds(module(b"", "name"), grave=False) == []


def test_findings_are_bounded() -> None:
    """A file of nothing but secrets or paths gives as many findings as people read."""
    many = b" ".join([b"AKIA" + b"Q7" * 8] * 1_000)
    assert len(scan.scan(module(many))) == scan.FINDINGS_MAX
    assert len(scan.scan(module(b"/home/x/ " * 1_000))) == scan.FINDINGS_MAX


def test_notes_crowd_no_secret_out() -> None:
    """However many odd sections stand in front of it, a secret is found."""
    odd = b"".join(wasm.custom(f"odd{number}", b"") for number in range(1_000))
    data = HEADER + odd + module(b"AKIA" + b"Q7" * 8)[len(HEADER) :]
    assert kinds(data) == ["AWS key"]


def test_a_place_outside_every_section_has_a_name() -> None:
    """The header has no section, and an unknown id is shown as a number."""
    sections = wasm.sections(HEADER + b"\x20\x01\x00")
    assert scan._where(sections, 0) == "header"
    assert scan._where(sections, 9) == "section 32"


@pytest.mark.parametrize(
    "part", [b"eyJ", b"a://", b"password=", b"A1", b"-----BEGIN ", b"SU", b"/home/", b"\0"]
)
def test_no_pattern_is_quadratic(part: bytes) -> None:
    """A megabyte of beginnings is scanned well within a test's own limit."""
    scan.scan(module(part * (1024 * 1024 // len(part))))
