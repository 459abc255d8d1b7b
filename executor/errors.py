"""The one table of error codes, and the exception that carries one.

Everything that names a failure derives from the rows below: the settlement of a task, the reason
in a dead letter, the exit status of the command line, `executor explain`, the table in
`executor/README.md`. A code is stable for ever; a retired one keeps its row. This file imports
nothing of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Class(StrEnum):
    """What a code means for the task that met it; `core.settlement` turns it into an action."""

    PERMANENT = "permanent"  # the same bytes would end the same way: dead letter
    RESOURCE = "resource"  # permanent: a cap was met, and would be met again
    SECURITY = "security"  # permanent: authority or authenticity is missing; no fallback hides it
    TRANSIENT = "transient"  # another attempt while any is left
    SYSTEMIC = "systemic"  # not this task's fault: put off, no attempt counted
    ONCE = "once"  # a sandbox died: again the first time, then dead letter
    SILENT = "silent"  # publish and answer nothing; the delivery comes again
    GUEST = "guest"  # the guest's own word decides
    NONE = "-"  # never settles a task


# What ends a task at once, whatever else is tried.
FINAL: Final = frozenset({Class.PERMANENT, Class.RESOURCE, Class.SECURITY})


@dataclass(frozen=True, slots=True)
class Row:
    """One code: what it says, whom it is for, and what to do about it."""

    code: str
    klass: Class
    who: str  # who can fix it: submitter, author, operator, us
    exit: int  # exit status of the command line
    message: str
    hint: str

    @property
    def stage(self) -> str:
        """The part before the dot."""
        return self.code.partition(".")[0]


_EXITS: Final = {
    "guest": 1, "module": 10, "policy": 11, "limit": 12, "sandbox": 13, "transport": 14,
    "config": 15, "message": 16, "capability": 17, "trust": 18, "task": 19, "internal": 70,
}  # fmt: skip

_P, _T, _S = Class.PERMANENT, Class.TRANSIENT, Class.SYSTEMIC
_R, _X = Class.RESOURCE, Class.SECURITY

# code, class, who can fix it, message, hint.
_ROWS: Final[tuple[tuple[str, Class, str, str, str], ...]] = (
    ("message.malformed", _P, "submitter", "the message is not a task request",
     "send an envelope (executor.Client, executor submit), or a raw body with a `Task-Id` header"),
    ("message.too-large", _R, "submitter", "the message or its input is larger than allowed",
     "keep the input within `limits.input_max_kib`; pass larger data by reference"),
    ("message.version-unknown", _P, "submitter", "the envelope has a version this host cannot read",
     "submit with a client of this executor's version or the one before it"),
    ("message.audience-mismatch", _X, "submitter",
     "the envelope was made for another subject or environment",
     "publish the envelope on the subject named in its `aud`, in the environment it was made for"),
    ("message.expired", _P, "submitter", "the task was not started before its `expires_at`",
     "submit again with a later `expires_at`, or look for a backlog with `executor doctor`"),
    ("message.deliveries-exhausted", _P, "operator",
     "the message was delivered `delivery.deliveries_max` times and never settled",
     "look for lost leases or restarts in the log, then `executor dead retry ID`"),
    ("module.invalid", _P, "author", "the file is not a module that can run here",
     "build it with `executor build`; `executor inspect FILE` shows what it contains"),
    ("module.manifest-invalid", _P, "author", "the module's manifest is missing or not valid",
     "rebuild with `executor build`, which writes the `executor.manifest` section"),
    ("module.abi-mismatch", _P, "author", "the module does not follow the guest ABI",
     "export `memory` and `run: () -> i32`; see guest_sdk/abi"),
    ("module.import-unknown", _P, "author", "the module imports what no capability offers",
     "remove the import; `executor inspect FILE` lists what the host offers"),
    ("module.too-complex", _R, "author", "the module exceeds a static cap or the compiler's limits",
     "make the module smaller: strip it, and build with -Oz or ReleaseSmall"),
    ("module.unsigned", _X, "author", "the module carries no signature",
     "sign it: executor sign FILE --key KEY"),
    ("module.signature-invalid", _X, "author", "the module's signature does not hold",
     "the file was changed after signing: rebuild, sign and publish it again"),
    ("module.signer-untrusted", _X, "operator",
     "too few publishers that are trusted for this task signed it",
     "add the signer's public key as [[publisher]] with this task in executor.toml"),
    ("module.signer-revoked", _X, "operator", "the module or its signer is revoked",
     "sign with a key that is not in `trust.revoked`"),
    ("module.provenance-missing", _T, "operator",
     "policy asks who built the module, and no statement of it is stored",
     "publish it again with what `executor build --builder-key KEY` wrote beside it"),
    ("module.provenance-invalid", _X, "operator",
     "the statement of who built the module does not hold",
     "build it where an accepted builder's key is, then publish module and statement together"),
    ("module.not-reproducible", Class.NONE, "author", "two builds of the same sources differ",
     "look for times, random numbers and files outside the task's folder in the sources"),
    ("module.quarantined", _S, "operator", "the module is in quarantine: it killed sandboxes",
     "publish a mended module, or lift it: executor quarantine lift DIGEST; its tasks wait"),
    ("module.breaker-open", _S, "author",
     "attempts of this module keep killing sandboxes or running past their deadline",
     "its tasks wait for a probe to succeed: look at `executor dead list`, mend the module"),
    ("module.not-found", _T, "operator", "the released module is not in the store",
     "publish it again: executor publish FILE"),
    ("module.digest-mismatch", _T, "operator", "the stored module is not the one that was released",
     "the stored copy was damaged or exchanged: publish the module again"),
    ("task.cancelled", _P, "submitter", "the task was cancelled",
     "to run it after all, submit it under another id"),
    ("task.paused", _S, "operator", "the task is paused",
     "its tasks wait: executor resume TASK"),
    ("policy.task-unknown", _P, "operator", "no module is released for this task",
     "publish one: executor publish FILE --tenant TENANT; `executor tenant list` shows tenants"),
    ("policy.capability-denied", _X, "operator", "the module wants what no grant allows",
     "add the printed lines under [[grant]] in executor.toml, then reload with SIGHUP"),
    ("policy.limit-too-high", _R, "operator", "more is asked for than policy allows",
     "ask for less, or raise the tenant's ceiling in executor.toml"),
    ("policy.submitter-denied", _X, "operator", "this submitter may not ask for this task",
     "`executor policy can-i submit TENANT/TASK --as NAME` says why; a [[binding]] allows it"),
    ("policy.raw-body-refused", _X, "operator", "this tenant takes no raw bodies",
     "submit an envelope, or set `raw_bodies = true` for the tenant in executor.toml"),
    ("policy.action-denied", Class.NONE, "operator", "this key may not do that",
     "give it a role that has the action, with a [[binding]] in executor.toml"),
    ("policy.session-expired", Class.NONE, "operator", "no session of this operator is open",
     "begin one: executor session start"),
    ("policy.approvals-missing", Class.NONE, "operator", "two others must approve this",
     "ask each of them: executor break-glass approve FILE"),
    ("limit.fuel-exhausted", _R, "author", "the guest used all its fuel",
     "raise `fuel` up to the operator's limit, or do less work in one task"),
    ("limit.memory-exceeded", _R, "author", "the guest needs more memory than its limit",
     "raise `memory_max_mib` up to the operator's limit, or use less memory"),
    ("limit.stack-exhausted", _R, "author", "the guest's call stack overflowed",
     "look for unbounded recursion in the trap's frames"),
    ("limit.output-too-large", _R, "author", "the guest wrote more output than its limit",
     "write less, or raise `output_max_kib` up to 512"),
    ("limit.calls-exceeded", _R, "author", "the guest made more host calls than its limit",
     "batch the calls, or raise `calls_max`"),
    ("limit.deadline-exceeded", _T, "author",
     "the attempt ran past its wall-clock deadline and was killed",
     "compare guest time and host time in the receipt: a large host time points at a capability, "
     "not at the module"),
    ("guest.trap", _P, "author", "the guest trapped",
     "the trap's frames name the function; build with names kept to see them"),
    ("guest.exited", _P, "author", "the guest ended with a failing exit status",
     "the tail of its log says why"),
    ("guest.bad-pointer", _P, "author", "the guest gave the host a range outside its memory",
     "check pointer and length of the call named in the facts"),
    ("guest.failed", Class.GUEST, "author", "the task reported a failure",
     "the message is the guest's own"),
    ("capability.denied", _X, "author, operator", "a capability call was denied",
     "the grant does not cover this argument; widen its scope or change the argument"),
    ("capability.bad-argument", _P, "author, operator", "a capability call had a bad argument",
     "see guest_sdk/abi for the bounds of each argument"),
    ("capability.deadline-exceeded", _T, "operator", "a capability call passed its deadline",
     "look at the health of the service behind the capability"),
    ("capability.unavailable", _S, "operator", "a capability's service is unavailable",
     "tasks wait for it and lose no attempt; restore the service"),
    ("sandbox.crashed", Class.ONCE, "operator, us", "the sandbox process crashed",
     "if it repeats with one module, treat that module as hostile"),
    ("sandbox.killed", Class.ONCE, "operator, us", "the sandbox process was killed from outside",
     "look for memory pressure on the host"),
    ("sandbox.protocol-violation", Class.ONCE, "operator, us",
     "the sandbox sent a frame that is not legal now",
     "treat the module as hostile and report it"),
    ("sandbox.start-failed", _S, "operator", "a sandbox could not be started",
     "run `executor doctor`: it starts one and says what fails"),
    ("sandbox.breaker-open", _S, "operator", "sandboxes of this tenant keep failing to start",
     "its tasks wait for one to start: run `executor doctor`"),
    ("sandbox.containment-missing", _S, "operator", "a layer of the sandbox's jail is missing",
     "run `executor doctor`: it names each layer"),
    ("transport.disconnected", Class.SILENT, "operator", "no connection to NATS",
     "start nats-server, or set `nats.url`; `executor demo` brings its own"),
    ("transport.permission-denied", Class.SILENT, "operator", "NATS refused the permission",
     "give this role the subject in the NATS server's configuration"),
    ("transport.stream-missing", Class.SILENT, "operator", "a stream does not exist",
     "make it: executor nats apply"),
    ("transport.stream-mismatch", Class.SILENT, "operator",
     "a stream is not configured as this version needs it",
     "compare and mend it: executor nats apply"),
    ("transport.stream-full", Class.SILENT, "operator", "a stream is full",
     "wait for the executors to catch up, or raise the tenant's `queue_max_mib`"),
    ("transport.lease-lost", Class.SILENT, "operator", "the lease on a delivery was lost",
     "nothing to do: the redelivery owns the task"),
    ("transport.publish-unconfirmed", Class.SILENT, "operator", "a publish was not confirmed",
     "check the stream's replicas and disk; asking again is harmless"),
    ("transport.outcome-pending", Class.NONE, "submitter", "the task has no outcome yet",
     "ask again later: executor result ID --wait"),
    ("transport.unanswered", Class.NONE, "operator", "no executor answered the command",
     "start one: executor serve; `executor top` shows who serves"),
    ("trust.missing", _S, "operator", "nobody is trusted: the source of trust is missing",
     "add [[publisher]] and [[executor]] to executor.toml, or to policy.toml where it is signed; "
     "`executor init` makes both"),
    ("trust.invalid", _S, "operator", "the source of trust is not valid",
     "mend it as the message says"),
    ("trust.expired", _S, "operator", "the source of trust has expired",
     "renew it: executor trust renew, and for a role that it names executor trust renew ROLE"),
    ("trust.rolled-back", _S, "operator", "the source of trust is older than one already seen",
     "restore the newest version: executor trust push, where it was signed"),
    ("trust.threshold-unmet", _S, "operator", "too few keys signed",
     "collect the missing signatures: executor trust sign, with each signer's key"),
    ("config.missing", Class.NONE, "operator", "something that is needed is not configured",
     "run `executor init`, or name a file with --config"),
    ("config.invalid", Class.NONE, "operator", "the configuration is not valid",
     "mend the named key; `executor config check` reports all errors at once"),
    ("config.key-unknown", Class.NONE, "operator", "the configuration has an unknown key",
     "`executor config show` prints every key"),
    ("config.secret-inline", Class.NONE, "operator", "a secret stands in the configuration",
     "put it into a file of its own (mode 0600) and name the file"),
    ("config.toolchain-missing", Class.NONE, "operator", "a toolchain is not installed",
     "install the named package"),
    ("internal.bug", _P, "us", "the executor met a state it does not know",
     "report it with the facts above; the task's bytes are kept"),
)  # fmt: skip

TABLE: Final[dict[str, Row]] = {
    code: Row(code, klass, who, _EXITS[code.partition(".")[0]], message, hint)
    for code, klass, who, message, hint in _ROWS
}

Fact = str | int


class ExecutorError(Exception):
    """An expected failure of anything but a task: one code of the table and the facts of the case.

    `detail` continues the row's message after a colon; `hint` replaces the row's; the facts are
    shown as aligned pairs. An unknown code is a bug and raises `KeyError` at once.
    """

    def __init__(self, code: str, detail: str = "", /, *, hint: str = "", **facts: Fact) -> None:
        self.row = TABLE[code]
        self.detail = detail
        self.hint = hint or self.row.hint
        self.facts = facts
        super().__init__(f"{code}: {self.message}")

    @property
    def code(self) -> str:
        """The stable name of this failure."""
        return self.row.code

    @property
    def message(self) -> str:
        """One sentence without a full stop."""
        return f"{self.row.message}: {self.detail}" if self.detail else self.row.message

    def again(self) -> ExecutorError:
        """The same, for whoever keeps one: raised itself, it would keep every frame it passed."""
        return ExecutorError(self.code, self.detail, hint=self.hint, **self.facts)

    def __reduce__(self) -> tuple[object, ...]:
        """Exceptions with keyword arguments do not pickle; nothing here may be pickled anyway."""
        raise TypeError("ExecutorError is not pickled")
