"""Who may do what: roles, their actions, and who has them within which tenants and tasks.

A principal is a tenant's token, as NATS names it in a subject (`tenant:acme`), or a key that signed
what it asks for (`key:<key id>`). A role is a set of actions; a binding gives a role to principals
within tenants and tasks, or with `deny` takes it away, and deny wins. What no binding allows is
denied; an action or role that nobody knows is refused when policy is read, never when it is asked.
Some bindings are implied: a tenant's token has the tenant's roles, a publisher's key its tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from executor.core.signature import PublicKey

ANY: Final = "*"
ACTIONS: Final = (
    "submit", "read", "retry", "discard", "cancel", "pause", "quarantine", "drain", "publish",
    "release", "change-policy", "approve",
)  # fmt: skip
# Task names come from whoever submits: more decisions than this are not kept.
_KNOWN_MAX: Final = 10_000
# What policy may name without defining it. No role has both halves of making code run with
# authority: who publishes does not grant, who grants does not publish.
BUILT_IN: Final[Mapping[str, frozenset[str]]] = {
    "submitter": frozenset({"submit", "cancel"}),
    "reader": frozenset({"read"}),
    "operator": frozenset({"retry", "discard", "cancel", "pause", "quarantine", "drain"}),
    "publisher": frozenset({"publish"}),
    "releaser": frozenset({"release"}),
    "policy-signer": frozenset({"change-policy"}),
    "approver": frozenset({"approve"}),
}


@dataclass(frozen=True, slots=True)
class Party:
    """A key that may ask for something: an operator's or a submitter's. Times in ms, 0: none.

    From `sessions_from` on an operator's key signs nothing but sessions.
    """

    name: str
    key: PublicKey
    not_before: int = 0
    not_after: int = 0
    sessions_from: int = 0

    def valid_at(self, at: int) -> bool:
        """Whether what the key signed at `at` may count."""
        return self.not_before <= at and (not self.not_after or at <= self.not_after)

    def needs_session(self, at: int) -> bool:
        """Whether what the key itself signed at `at` counts for nothing."""
        return bool(self.sessions_from) and at >= self.sessions_from


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
    denied: bool = False  # by a binding that says so, which nothing overrides


@dataclass(frozen=True, slots=True)
class Access:
    """See the module."""

    roles: Mapping[str, frozenset[str]] = field(default_factory=lambda: dict(BUILT_IN))
    bindings: tuple[Binding, ...] = ()
    # What was decided: an object stands for one version of policy, and is never changed.
    _known: dict[tuple[str, str, str, str, str], Decision] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def may(self, principal: str, action: str, tenant: str, task: str, by: str = "") -> Decision:
        """Whether `principal` may do `action` to a task of a tenant. Deny wins.

        `tenant` and `task` of "*" ask for all of them. `by` is a second principal behind the same
        message, a signer: it may do what either may, and not what either is denied.
        """
        asked = (principal, action, tenant, task, by)
        known = self._known.get(asked)
        if known is None:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            known = self._known[asked] = self._decide(*asked)
        return known

    def _decide(self, principal: str, action: str, tenant: str, task: str, by: str) -> Decision:
        allowed: Binding | None = None
        for binding in self.bindings:
            if action not in self.roles[binding.role] or not (
                _speaks(binding, principal, tenant, task)
                or (by and _speaks(binding, by, tenant, task))
            ):
                continue
            if binding.deny:
                why = f"`{binding.role}` is denied to it: {binding.why}"
                return Decision(False, why, denied=True)
            allowed = allowed or binding
        if allowed is None:
            return Decision(False, f"no role of it has `{action}` there")
        return Decision(True, f"as `{allowed.role}`")


def _speaks(binding: Binding, principal: str, tenant: str, task: str) -> bool:
    if not binding.deny:
        return binding.covers(principal, tenant, task)
    # A denial of a part is a denial of what asks for all.
    return (
        principal in binding.who
        and (tenant == ANY or bool({ANY, tenant} & binding.tenants))
        and (task == ANY or bool({ANY, task} & binding.tasks))
    )


def of_roles(tenant: str, roles: Iterable[str]) -> Iterator[Binding]:
    """What a tenant's roles imply: its token has them for all of its tasks."""
    for role in roles:
        yield Binding(role, frozenset({of_tenant(tenant)}), frozenset({tenant}),
                      why="a tenant's own")  # fmt: skip


def of_publisher(key: PublicKey, patterns: Iterable[str]) -> Iterator[Binding]:
    """What being a publisher implies: its key has that role for its tasks, TENANT/TASK each."""
    for pattern in patterns:
        tenant, _, task = pattern.partition("/")
        yield Binding("publisher", frozenset({of_key(key)}), frozenset({tenant}),
                      frozenset({task}), why="a publisher's own")  # fmt: skip


def of_tenant(name: str) -> str:
    """The principal that a subject's tenant token stands for."""
    return f"tenant:{name}"


def of_key(key: PublicKey) -> str:
    """The principal that holds a key."""
    return of_key_id(key.key_id.hex())


def of_key_id(key_id: str) -> str:
    """The same, by the key's id in hex."""
    return f"key:{key_id}"
