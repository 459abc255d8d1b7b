"""The table of NATS roles: what stands in it, and what never does."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from executor import config_document
from executor.config_document import Document
from executor.config_tables import Reader
from executor.core.nats_roles import ROLES, Rights, inbox, rights
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.transport import accounts

KEY = {name: SecretKey(name.encode().ljust(32)).public for name in ("ann", "bob", "exe", "pub")}


def everything(role: str) -> Rights:
    """All that a login of a role can ever have."""
    return rights(role, "me", ["acme"], lambda _action, _tenant: True)


def document(**more: object) -> Document:
    """A policy: two tenants, one of which may only submit, an executor of one of them."""
    table = {
        "tenant": [{"name": "acme"}, {"name": "zebra", "roles": ["submitter"]}],
        "executor": [{"name": "exe", "key": KEY["exe"].text, "tenants": ["zebra"]}],
        "publisher": [{"name": "pub", "key": KEY["pub"].text, "tasks": ["acme/*"]}],
        "operator": [{"name": "ann", "key": KEY["ann"].text},
                     {"name": "bob", "key": KEY["bob"].text}],
        "binding": [
            {"role": "operator", "who": ["ann"], "tenants": ["acme"], "tasks": ["one"], "why": "x"},
            {"role": "policy-signer", "who": ["bob"], "why": "x"},
        ],
        **more,
    }  # fmt: skip
    reader = Reader("", "policy.toml", Path())
    found = config_document.read(reader, table)
    reader.finish()
    return found


@pytest.mark.parametrize("role", ROLES)
def test_replies_have_a_prefix_of_their_own(role: str) -> None:
    """Nobody listens to another's replies, or to all there is."""
    given = everything(role)
    inboxes = [s for s in given.subscribe if s.startswith("_INBOX")]
    assert inboxes == [f"{inbox(role, 'me')}.>"]
    assert not {">", "_INBOX.>", "$JS.>", "$SYS.>"} & {*given.subscribe, *given.publish}


def test_what_only_the_server_or_an_executor_says() -> None:
    """Stored and due messages are the server's; outcomes, retries and acks the executors'."""
    for role in ROLES:
        published = everything(role).publish
        assert not [s for s in published if s.startswith(("stored.", "due."))], role
        if role != "executor":
            own = ("result.", "dead.", "later.", "$JS.ACK.TASKS", "$KV.T_")
            assert not [s for s in published if s.startswith(own)], role
        if role != "deployer":
            made = ("CREATE", "UPDATE", "DELETE", "PURGE", "RESTORE")
            api = [s for s in published if s.startswith("$JS.API.")]
            assert not [s for s in api if s == "$JS.API.>" or any(m in s for m in made)], role


def test_no_role_both_signs_trust_and_publishes() -> None:
    """Who writes trust writes no module; who steers reads no payload."""
    assert not [s for s in everything("trust").publish if s.startswith(("$O.", "task."))]
    reads = [s for s in everything("operator").publish if "DIRECT.GET" in s]
    assert not [s for s in reads if "OUTCOMES" in s or "TASKS" in s or s.endswith("LATER_acme")]


def test_every_operator_may_break_glass() -> None:
    """Whoever has no action at all may say that two others gave one; no tenant, no executor may."""
    place = "$KV.CONTROL.break-glass.*"
    assert place in accounts.rights_of(document(), "operator_bob", at_ms=None).publish
    assert [role for role in ROLES if place in everything(role).publish] == ["operator"]


def test_policy_decides_what_is_given() -> None:
    """Rights follow the actions of a login's party, within its tenants; labels change nothing."""
    given = accounts.rights_of(document(), "operator_ann.laptop", at_ms=None)
    assert "$KV.CONTROL.pause.acme.*" in given.publish
    assert not [s for s in given.publish if "zebra" in s or s.startswith("$KV.CONTROL.release")]
    assert "$KV.CONTROL.pause.acme.*" not in (
        accounts.rights_of(document(), "operator_bob", at_ms=None).publish
    )
    served = accounts.rights_of(document(), "executor_exe", at_ms=None)
    assert "result.zebra.>" in served.publish
    assert not [s for s in served.publish if "acme" in s]
    assert rights("reader", "me", [], lambda *_: True).publish == ()


def test_the_logins_that_a_configuration_needs() -> None:
    """One a tenant's role that policy allows, one a party; an auditor brings a key."""
    found = accounts.expected(document())
    assert set(found) == {
        "submitter_acme", "reader_acme", "client_acme", "submitter_zebra", "executor_exe",
        "publisher_pub", "operator_ann", "operator_bob", "trust_bob", "deployer_main",
        "system_main",
    }  # fmt: skip
    assert accounts.rights_of(document(), "auditor_ann", at_ms=None).publish


@pytest.mark.parametrize(
    "stem",
    ["reader_zebra", "client_zebra", "reader_nobody", "trust_ann", "operator_eve", "executor_ann"],
)
def test_a_login_that_policy_does_not_allow(stem: str) -> None:
    """It has no rights at all, and is told why."""
    with pytest.raises(ExecutorError) as caught:
        accounts.rights_of(document(), stem, at_ms=None)
    assert caught.value.code == "transport.permission-denied"
    assert stem.partition(".")[0] in caught.value.detail


def test_a_party_counts_while_it_is_valid() -> None:
    """A revoked key has no login; one that has expired gets no JWT."""
    revoked = document(trust={"revoked": [KEY["ann"].key_id.hex()]})
    with pytest.raises(ExecutorError):
        accounts.rights_of(revoked, "operator_ann", at_ms=None)
    row = {"name": "exe", "key": KEY["exe"].text, "not_after": dt.date(2030, 1, 1)}
    until = document(executor=[row])
    assert accounts.rights_of(until, "executor_exe", at_ms=1_000)
    with pytest.raises(ExecutorError):
        accounts.rights_of(until, "executor_exe", at_ms=2_000_000_000_000)


@pytest.mark.parametrize("stem", ["", "reader", "reader_", "king_acme", "_acme"])
def test_what_is_no_login(stem: str) -> None:
    """A name that is not ROLE_NAME is refused with the roles that there are."""
    with pytest.raises(ExecutorError, match="no login"):
        accounts.split(stem)
