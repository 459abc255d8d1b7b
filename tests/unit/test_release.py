"""A release in CONTROL: bound to its key, one digest, and nothing else is one."""

from __future__ import annotations

import pytest

from executor.core import release
from executor.core.content import to_msgpack
from executor.errors import ExecutorError
from executor.model import Digest, Release

DIGEST = "sha256:" + "ab" * 32
LIVE = Release("acme", "resize", Digest(DIGEST), "1.4.0")


def fields(**changes: object) -> dict[str, object]:
    """The fields of a valid release with some changed; None leaves one out."""
    base: dict[str, object] = {
        "v": 1, "typ": "release", "aud": "dev/release.acme.resize", "digest": DIGEST,
        "version": "1.4.0",
    }  # fmt: skip
    return {name: value for name, value in (base | changes).items() if value is not None}


def refusal(data: bytes, tenant: str = "acme", environment: str = "dev") -> str:
    """The code with which `data` is refused."""
    with pytest.raises(ExecutorError) as caught:
        release.decode(data, tenant, "resize", environment=environment)
    return caught.value.code


def test_a_release_reads_back() -> None:
    """What was released is what the host finds under the key."""
    data = release.encode(LIVE, "dev")
    assert data == to_msgpack(fields())
    assert release.decode(data, "acme", "resize", environment="dev") == LIVE


@pytest.mark.covers("message.audience-mismatch")
def test_a_release_holds_under_its_own_key_alone() -> None:
    """Copied to another tenant, or into another environment, a release is none."""
    data = release.encode(LIVE, "dev")
    assert refusal(data, tenant="other") == "message.audience-mismatch"
    assert refusal(data, environment="prod") == "message.audience-mismatch"


@pytest.mark.parametrize("v", [0, 2, None, "1"])
def test_other_versions_are_not_read(v: object) -> None:
    """A release of a version that this host does not know is refused as such."""
    assert refusal(to_msgpack(fields(v=v))) == "message.version-unknown"


@pytest.mark.parametrize(
    "changes",
    [
        {"typ": "task"}, {"typ": None}, {"digest": None}, {"extra": 1}, {"digest": 7},
        {"digest": "sha256:" + "AB" * 32}, {"digest": DIGEST + "\n"}, {"digest": "ab" * 32},
        {"version": 1}, {"version": None},
    ],
)  # fmt: skip
def test_every_field_is_checked(changes: dict[str, object]) -> None:
    """A field that is missing, unknown or of another form makes it no release."""
    assert refusal(to_msgpack(fields(**changes))) == "message.malformed"


def test_bytes_that_are_no_map() -> None:
    """A damaged value is refused, not half read."""
    assert refusal(b"") == "message.malformed"
    assert refusal(to_msgpack([1])) == "message.malformed"
