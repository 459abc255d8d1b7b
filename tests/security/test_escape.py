"""After an escape: what native code in a locked sandbox can still do, which must be nothing.

The attacks are those of `executor.sandbox.attacks`. They are tried in whole sandboxes, then with
one layer off, to see that another stops them, then with one layer alone, to see that it does what
it says.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from executor.core import layers
from executor.sandbox import attacks, jail, seccomp
from tests.support.nursery import Nursery

# What nothing but the filter stops: no file, no network, nobody else's memory or process is among
# them when the sandbox has a user of its own.
ONLY_FILTER = frozenset({
    "stat", "statx", "new-namespaces", "ptrace-me", "read-parents-memory",
    "write-parents-memory", "signal-everyone", "signal-itself", "write-and-execute",
    "execute-later", "pkey-mprotect", "shared-memory", "stack-mapping", "keyring", "shared-segment",
    "message-queue", "be-dumpable", "outlive-parent", "raise-a-limit", "personality",
    "another-filter",
})  # fmt: skip
# Attacks of two kinds need no root to succeed in an open process; they leave nothing behind.
CLAIMS = {
    layers.LANDLOCK_FILES: {"open", "openat2", "open-proc", "list-a-folder", "exec", "execveat"},
    layers.NO_DESCRIPTORS: {
        "open", "openat2", "socket-unix", "socket-inet", "socket-inet6", "socket-netlink",
        "socket-udp", "socketpair", "pidfd-of-parent", "memfd", "pipe", "duplicate", "eventfd",
        "epoll", "inotify", "fcntl-duplicate",
    },
    layers.SECCOMP: {*ONLY_FILTER, "open", "exec", "fork", "socket-inet", "memfd", "pipe"},
}  # fmt: skip
CLAIMS_AS_ROOT = {
    layers.USER: {"chroot", "setuid-root", "setresuid", "setgroups", "signal-parent"},
    layers.CAPABILITIES: {"chroot", "setgroups", "socket-packet"},
}
PASSED = attacks.EXIT_PASSED


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """A fork server for all tests here."""
    made = Nursery()
    yield made
    made.close()


def test_there_are_enough_attacks() -> None:
    """Files, sockets of each family, processes, signals, code, kernel interfaces, privileges."""
    assert len(attacks.ATTACKS) >= 70
    assert set(layers.CANARIES) <= set(attacks.ATTACKS)


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_every_action_of_an_escapee_is_refused(nursery: Nursery, name: str) -> None:
    """A locked sandbox that tries it is dead before it has happened."""
    assert nursery.attack(name) == -signal.SIGSYS


# In an open process these pass, but for the one that a hardened library stops by itself.
BY_OTHERS = {
    "code-in-callbacks": -signal.SIGSEGV, "stretch-the-stack": attacks.EXIT_REFUSED,
    "map-without-end": attacks.EXIT_REFUSED, "data-beyond-the-budget": attacks.EXIT_REFUSED,
}  # fmt: skip


@pytest.mark.parametrize("memory", ["pooled", "on-demand"])
def test_what_the_filter_allows_and_others_stop(memory: str) -> None:
    """Code in the pages of callbacks, and memory that no limit of data counts."""
    made = Nursery(pooled=memory == "pooled")
    try:
        assert {name: made.attack(name) for name in attacks.ELSEWHERE} == BY_OTHERS
    finally:
        made.close()


def test_what_others_stop_is_real() -> None:
    """The twin: with the filter alone, each of these passes."""
    steps = alone(layers.SECCOMP)
    assert {name: outcome(name, steps) for name in BY_OTHERS} == dict.fromkeys(BY_OTHERS, PASSED)


def test_a_locked_process_works(nursery: Nursery) -> None:
    """The harmless twin: memory and randomness are there."""
    assert nursery.attack("nothing") == PASSED


def outcome(name: str, steps: list[tuple[str, jail.Step]]) -> int:
    """How a child ends that takes these steps and tries this."""
    child = os.fork()
    if child == 0:
        try:
            null = os.open("/dev/null", os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            jail.close_others(())
            rules = seccomp.sandbox_rules(pid=os.getpid(), socket=0)
            user = jail.user_of_slot(0)
            plan = jail.Plan(os.getppid(), rules, user=user, data=2**28, address_space=2**28)
            jail.lock_down(plan, steps)
            attacks.attempt(name)
        finally:
            os._exit(99)  # a step refused to go on without another one: no attack was tried
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def without(*off: str) -> list[tuple[str, jail.Step]]:
    """Every step but these.

    Landlock and the filter ask for no-new-privs or for a right of root's: without the one, the
    other stays, or no attack would ever be tried.
    """
    gone = {*off, *((layers.USER, layers.CAPABILITIES) if layers.NO_NEW_PRIVS in off else ())}
    return [(name, step) for name, step in jail.STEPS if name not in gone]


def alone(only: str) -> list[tuple[str, jail.Step]]:
    """One step, and what the kernel asks for before it."""
    needs = (
        {only, layers.NO_NEW_PRIVS} if only in {layers.LANDLOCK_FILES, layers.SECCOMP} else {only}
    )
    return [(name, step) for name, step in jail.STEPS if name in needs]


def possible(off: str) -> None:
    """Skip a row that only root can have."""
    if off == layers.NO_NEW_PRIVS and os.geteuid() != 0:
        pytest.skip("without no-new-privs only root has a filter")


@pytest.mark.parametrize("off", [name for name, _ in jail.STEPS])
def test_with_any_layer_off_another_stops_the_attack(off: str) -> None:
    """The matrix: without one layer every attack still fails, but for those named above."""
    possible(off)
    assert outcome("nothing", without(off)) == PASSED
    passed = {name for name in attacks.ATTACKS if outcome(name, without(off)) == PASSED}
    assert passed <= (ONLY_FILTER if off == layers.SECCOMP else set())


# Without the filter and one layer more: what that layer stops and no other one does.
FORKS = frozenset({"fork", "clone3"})
ROOTS = frozenset({"setuid-root", "setresuid"})
PAIRS: dict[str, frozenset[str]] = {
    layers.USER: FORKS | ROOTS,  # limits of processes do not bind root
    # And what another user and no capabilities stop: see `without`.
    layers.NO_NEW_PRIVS: FORKS | ROOTS | {"chroot", "setgroups", "kernel-log"},
    layers.LANDLOCK_FILES: frozenset({"signal-parent"}),  # where a slot has no user of its own
    layers.RLIMITS: FORKS | set(BY_OTHERS) - {"code-in-callbacks"},
    layers.WRITE_OR_EXECUTE: frozenset({"code-in-callbacks"}),
    layers.NO_DESCRIPTORS: frozenset({
        "duplicate", "epoll", "eventfd", "fcntl-duplicate", "inotify", "memfd", "memfd-secret",
        "pidfd-of-parent", "pipe", "socket-inet", "socket-inet6", "socket-netlink", "socket-udp",
        "socket-unix", "socket-vsock", "socketpair", "userfaultfd",
    }),
}  # fmt: skip
# Nobody else stops these, whatever the kernel was built with.
SURE: dict[str, frozenset[str]] = {
    layers.RLIMITS: PAIRS[layers.RLIMITS],
    layers.NO_DESCRIPTORS: frozenset({"duplicate", "memfd", "pipe", "socket-udp", "socketpair"}),
}


@pytest.mark.parametrize("off", [name for name, _ in jail.STEPS if name != layers.SECCOMP])
def test_without_the_filter_and_one_layer_more(off: str) -> None:
    """The others stop what they claim where no filter stands before them, and no more passes."""
    possible(off)
    steps = without(layers.SECCOMP, off)
    assert outcome("nothing", steps) == PASSED
    tried = {*attacks.ATTACKS, *attacks.ELSEWHERE}
    passed = {name for name in tried if outcome(name, steps) == PASSED} - ONLY_FILTER
    assert passed <= PAIRS.get(off, frozenset())
    if os.geteuid() == 0:
        assert passed >= SURE.get(off, frozenset())


@pytest.mark.parametrize("only", CLAIMS)
def test_each_layer_alone_stops_what_it_claims(only: str) -> None:
    """With all others off, a layer does its own work; without it the same attacks succeed."""
    passed = {name for name in CLAIMS[only] if outcome(name, alone(only)) == PASSED}
    assert passed == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has what these layers take away")
@pytest.mark.parametrize("only", CLAIMS_AS_ROOT)
def test_each_layer_of_root_alone(only: str) -> None:
    """As above, for what takes root's powers away."""
    claims = CLAIMS_AS_ROOT[only]
    assert {name for name in claims if outcome(name, []) != PASSED} == set()
    assert {name for name in claims if outcome(name, alone(only)) == PASSED} == set()


@pytest.mark.parametrize("only", [name for name, _ in jail.STEPS])
def test_harmless_work_passes_under_each_layer(only: str) -> None:
    """No layer stops what a guest's attempt needs."""
    assert outcome("nothing", alone(only)) == PASSED


def test_open_processes_are_open() -> None:
    """The attacks are real: without any layer the common ones succeed."""
    for name in ("open", "socket-udp", "fork", "execute-later", "signal-parent", "memfd", "stat"):
        assert outcome(name, []) == PASSED
