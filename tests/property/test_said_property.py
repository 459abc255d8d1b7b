"""Whatever bytes lie in CONTROL, arrive on `control.…` or among the tasks: believed or refused."""

from __future__ import annotations

import contextlib
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from executor.core import content, envelope, seal, subjects
from executor.core.envelope import Draft, Sealed
from executor.core.seal import NotAuthenticError
from executor.errors import ExecutorError
from tests.support import guests
from tests.support.rig import TENANT, make_config

NOW: Final = 1_800_000_000_000
OPENER: Final = make_config().opener()
KEYS: Final = ("pause.acme.echo", "release.acme.echo", "quarantine." + "ab" * 32, "usage.acme.x",
               "status.x", "breaker.module.acme.ab", "x", "cancel.acme._.1",
               "break-glass.x")  # fmt: skip
SUBJECT: Final = subjects.commands_of(TENANT)

values = st.integers(-1, 2**54) | st.text(max_size=8) | st.binary(max_size=8) | st.none()
payloads = st.binary(max_size=60) | st.builds(
    lambda more, place: content.to_msgpack(
        {"v": 1, "typ": "pause", "aud": f"test/{place}", **more}
    ),
    st.dictionaries(st.sampled_from(["at", "why", "until", "verb"]), values), st.sampled_from(KEYS),
)  # fmt: skip
keys = st.sampled_from([guests.OPERATOR, guests.HOST, guests.STRANGER])


@st.composite
def sealed(draw: st.DrawFn) -> tuple[str, bytes]:
    """A place, and what somebody sealed for it, or for another."""
    place = draw(st.sampled_from([*KEYS, SUBJECT]))
    meant = draw(st.sampled_from([place, SUBJECT, KEYS[0]]))
    typ = draw(st.sampled_from(["control", "result", "task"]))
    aud, id_ = f"test/{meant}", meant.rpartition(".")[2]
    draft = Draft(typ, aud, id_, draw(payloads), draw(st.sampled_from([1, 2, 3])))
    at = NOW + draw(st.sampled_from([0, 1, -seal.FRESH_MS - 1]))
    return place, seal.seal(draw(keys), [draft], at=at)[0]


@given(sealed() | st.tuples(st.sampled_from([*KEYS, SUBJECT]), st.binary(max_size=80)))
def test_what_is_said_is_believed_or_refused(case: tuple[str, bytes]) -> None:
    """No exception but one, whoever sealed what for which place."""
    place, data = case
    for opens in (
        lambda: OPENER.said(place, data, stored_at=NOW),
        lambda: OPENER.command(place, data, now=NOW),
        lambda: OPENER.answer(place, data, nonce="x", tenant=TENANT, now=NOW),
    ):
        with contextlib.suppress(NotAuthenticError):
            opens()


@given(payloads, keys)
def test_a_signed_request_is_read_or_refused(payload: bytes, key: object) -> None:
    """What is inside a seal that holds is decoded within the codes."""
    assert isinstance(key, type(guests.HOST))
    draft = Draft("task", f"test/task.{TENANT}.echo", "a", payload, envelope.SIGNED)
    (body,) = seal.seal(key, [draft], at=NOW)
    found = envelope.decode_task(
        body, {}, TENANT, "echo", environment="test", raw_allowed=False, input_max=100
    )
    assert isinstance(found, Sealed)
    with contextlib.suppress(ExecutorError):
        envelope.decode_signed(found, TENANT, "echo", environment="test", input_max=100)
