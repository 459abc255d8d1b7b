"""The layers of the jail by name: what a sandbox puts on and what its supervisor asks for."""

from __future__ import annotations

from typing import Final

RLIMITS: Final = "rlimits"
USER: Final = "user"
CAPABILITIES: Final = "capabilities"
NOT_DUMPABLE: Final = "not-dumpable"
PARENT_DEATH: Final = "parent-death"
NO_NEW_PRIVS: Final = "no-new-privs"
LANDLOCK_FILES: Final = "landlock-files"
LANDLOCK_TCP: Final = "landlock-tcp"
LANDLOCK_SCOPES: Final = "landlock-scopes"
WRITE_OR_EXECUTE: Final = "write-or-execute"
NO_DESCRIPTORS: Final = "no-descriptors"
SECCOMP: Final = "seccomp"
NAMESPACES: Final = "namespaces"

# Name → what it stops, in the order in which they are put on.
LAYERS: Final[dict[str, str]] = {
    NAMESPACES: "a network and IPC of its own, with nothing in them",
    USER: "a user of its own for each slot",
    CAPABILITIES: "no privilege of root",
    NOT_DUMPABLE: "no other process reads its memory",
    PARENT_DEATH: "it does not outlive its supervisor",
    NO_NEW_PRIVS: "no exec gains a privilege",
    LANDLOCK_FILES: "no file can be opened, made or removed",
    LANDLOCK_TCP: "no TCP port is bound or connected to",
    LANDLOCK_SCOPES: "no signal and no abstract socket beyond itself",
    RLIMITS: "no core file, no file, no process, no locked memory; memory bounded",
    WRITE_OR_EXECUTE: "no memory is both writable and executable",
    NO_DESCRIPTORS: "no new descriptor can exist",
    SECCOMP: "26 system calls, arguments checked; any other one kills it",
}

# Attacks of five kinds, tried by locked processes before the first task: a file, the network, a
# process, code, the parent. The others are in the tests.
CANARIES: Final = ("open", "socket-inet", "fork", "execute-later", "signal-parent")

# Without one of these nothing runs, unless `sandbox.containment` is "best-effort". The others
# depend on the kernel's age (TCP, scopes) and on rights that containers take away (user,
# namespaces); what they stop is stopped by one of these as well.
REQUIRED: Final = frozenset({
    RLIMITS, CAPABILITIES, NOT_DUMPABLE, PARENT_DEATH, NO_NEW_PRIVS, LANDLOCK_FILES,
    WRITE_OR_EXECUTE, NO_DESCRIPTORS, SECCOMP,
})  # fmt: skip
