"""Who may do what: roles, their actions, and who has them within which tenants and tasks.

A principal is a tenant's token, as NATS names it in a subject (`tenant:acme`), or a key that signed
what it asks for (`key:<key id>`). A role is a set of actions; a binding gives a role to principals
within tenants and tasks, or with `deny` takes it away, and deny wins. What no binding allows is
denied; an action or role that nobody knows is refused when policy is read, never when it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from executor.core.signature import PublicKey

ANY: Final = "*"
ACTIONS: Final = (
    "submit", "read", "retry", "discard", "cancel", "pause", "quarantine", "drain", "publish",
    "release", "change-policy",
)  # fmt: skip
# What policy may name without defining it. No role has both halves of making code run with
# authority: who publishes does not grant, who grants does not publish.
BUILT_IN: Final[Mapping[str, frozenset[str]]] = {
    "submitter": frozenset({"submit", "cancel"}),
    "reader": frozenset({"read"}),
    "operator": frozenset({"retry", "discard", "cancel", "pause", "quarantine", "drain"}),
    "publisher": frozenset({"publish"}),
    "releaser": frozenset({"release"}),
    "policy-signer": frozenset({"change-policy"}),
}


@dataclass(frozen=True, slots=True)
class Party:
    """A key that may ask for something: an operator's or a submitter's. Times in ms, 0: none."""

    name: str
    key: PublicKey
    not_before: int = 0
    not_after: int = 0

    def valid_at(self, at: int) -> bool:
        """Whether what the key signed at `at` may count."""
        return self.not_before <= at and (not self.not_after or at <= self.not_after)


@dataclass(frozen=True, slots=True)
class Binding:
    """A role for principals, within tenants and tasks; "*" is all of them."""

    role: str
    who: frozenset[str]  # principals
    tenants: frozenset[str] = frozenset({ANY})
    tasks: frozenset[str] = frozenset({ANY})
    deny: bool = False
    why: str = ""

    def covers(self, principal: str, tenant: str, task: str) -> bool:
        """Whether it speaks of this principal there; a `tenant` or `task` of "*" means all."""
        return (
            principal in self.who
            and bool({ANY, tenant} & self.tenants)
            and bool({ANY, task} & self.tasks)
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether, and what decided it."""

    allowed: bool
    why: str


@dataclass(frozen=True, slots=True)
class Access:
    """See the module."""

    roles: Mapping[str, frozenset[str]] = field(default_factory=lambda: dict(BUILT_IN))
    bindings: tuple[Binding, ...] = ()

    def may(self, principal: str, action: str, tenant: str, task: str) -> Decision:
        """Whether `principal` may do `action` to a task of a tenant. Deny wins."""
        allowed: Binding | None = None
        for binding in self.bindings:
            if action not in self.roles[binding.role] or not _speaks(
                binding, principal, tenant, task
            ):
                continue
            if binding.deny:
                return Decision(False, f"`{binding.role}` is denied to it: {binding.why}")
            allowed = allowed or binding
        if allowed is None:
            return Decision(False, f"no role of it has `{action}` there")
        return Decision(True, f"as `{allowed.role}`")


def _speaks(binding: Binding, principal: str, tenant: str, task: str) -> bool:
    # A denial of a part is a denial of what asks for all: "*" asks for every tenant or task.
    if binding.deny and ANY in {tenant, task}:
        return principal in binding.who
    return binding.covers(principal, tenant, task)


def of_tenant(name: str) -> str:
    """The principal that a subject's tenant token stands for."""
    return f"tenant:{name}"


def of_key(key: PublicKey) -> str:
    """The principal that holds a key."""
    return f"key:{key.key_id.hex()}"
