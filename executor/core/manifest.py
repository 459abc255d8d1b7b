"""The manifest: what a module says it is and asks for, inside the signed bytes of its own file.

One custom section `executor.manifest` holds canonical JSON (RFC 8785 without floats): sorted keys,
no spaces, no escapes that are not needed. The members `v`, `kind`, `task`, `version`, `abi` and
`entry` are always written, every other one only if it is not empty, so that a manifest has one
spelling; every other spelling is refused. A manifest asks and grants nothing. It is read after the
module's signature held, never before. Which capabilities exist is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from executor.core import strict, subjects, wasm
from executor.core.abi import ENTRY
from executor.core.abi import VERSION as ABI_VERSION
from executor.core.strict import INT_MAX, shown
from executor.errors import ExecutorError
from executor.sizes import KIB

SECTION: Final = "executor.manifest"
MANIFEST_MAX: Final = 64 * KIB
VERSION: Final = 1
WANTS_MAX: Final = 64
LIMITS: Final = frozenset({"fuel", "memory_bytes", "deadline_ms", "output_bytes", "host_calls"})

_DEPTH_MAX: Final = 3  # the manifest, its list of wants, one want
_REQUIRED: Final = frozenset({"v", "kind", "task", "version", "abi", "entry"})
_OPTIONAL: Final = frozenset({
    "summary", "wants", "limits", "input", "output", "idempotent", "source_date", "built_with",
    "not_after",
})  # fmt: skip
_WANT_REQUIRED: Final = frozenset({"capability"})
_WANT_OPTIONAL: Final = frozenset({"scope", "reason"})

_CAPABILITY: Final = re.compile(r"[a-z]{1,32}:[a-z]{1,32}@[0-9]{1,9}")
_KIND: Final = re.compile(r"core|component")
_VERSION: Final = re.compile(r"[ -~]{1,64}")
_ENTRY: Final = re.compile(r"[!-~]{1,128}")
# One line that an operator may read before granting something: no control characters, no line
# separators, nothing that turns the direction of writing, no lone surrogates. A fixed list, since
# `str.isprintable` changes with the Python version and two hosts must agree on what is valid.
_LINE: Final = re.compile(
    r"[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]{0,256}"
)


@dataclass(frozen=True, slots=True)
class Want:
    """One capability asked for; `scope` narrows it, `reason` is for whoever grants it."""

    capability: str  # `executor:kv@1`
    scope: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a module says of itself; `limits` only lower the operator's, sorted when decoded."""

    task: str
    version: str
    v: int = VERSION
    kind: str = "core"  # or "component"; equals what the module's magic says
    summary: str = ""
    abi: int = ABI_VERSION
    entry: str = ENTRY
    wants: tuple[Want, ...] = ()
    limits: tuple[tuple[str, int], ...] = ()
    input: str = ""  # content type or schema id
    output: str = ""  # content type or schema id
    idempotent: bool = False
    source_date: int = 0  # ms
    built_with: str = ""
    not_after: int = 0  # ms; 0: never


def _invalid(field: str, detail: str) -> ExecutorError:
    return ExecutorError("module.manifest-invalid", f"`{field}`: {detail}")


def encode(m: Manifest) -> bytes:
    """The one spelling of `m`.

    Errors  `module.manifest-invalid`, as `decode` would say of the bytes.
    """
    data = _dump(m)
    decode(data)
    return data


def decode(data: bytes) -> Manifest:
    """The manifest in `data`, every member checked against its type and bound.

    Shapes  UTF-8, ≤ 64 KiB, ≤ 64 wants, integers below 2^53, texts ≤ 256 characters of one line.
    Errors  `module.manifest-invalid` with the name of the member.
    """
    if len(data) > MANIFEST_MAX:
        raise _invalid("manifest", f"{len(data)} bytes, at most {MANIFEST_MAX}")
    manifest = _manifest(_load(data))
    if _dump(manifest) != data:
        raise _invalid("manifest", "not in canonical form")
    return manifest


def append(module: bytes, m: Manifest) -> bytes:
    """`module` with `m` as its last section; to be done before signing.

    Errors  `module.manifest-invalid` if there is one or if `m` names another kind;
            `module.invalid`, `module.too-complex` as `wasm.sections`.
    """
    if _found(module):
        raise _invalid("manifest", f"the module has a section {SECTION} already")
    _check_kind(module, m)
    return module + wasm.custom(SECTION, encode(m))


def read(module: bytes) -> Manifest:
    """The manifest of `module`, whose signature must have been verified.

    Errors  `module.manifest-invalid` unless there is exactly one, valid and of the module's kind;
            `module.invalid`, `module.too-complex` as `wasm.sections`.
    """
    found = _found(module)
    if len(found) != 1:
        raise _invalid("manifest", f"{len(found)} sections {SECTION}, exactly 1 is needed")
    manifest = decode(module[found[0].payload : found[0].end])
    _check_kind(module, manifest)
    return manifest


def _found(module: bytes) -> tuple[wasm.Section, ...]:
    return tuple(s for s in wasm.sections(module) if s.name == SECTION)


def _check_kind(module: bytes, m: Manifest) -> None:
    # The magic lies outside the signed bytes; only this comparison binds it to them.
    kind = wasm.kind(module)
    if m.kind != kind:
        raise _invalid("kind", f"{shown(m.kind)}, but the file is a {kind}")


def _dump(m: Manifest) -> bytes:
    limits = dict(m.limits)
    if len(limits) != len(m.limits):
        raise _invalid("limits", "a name twice")
    members: dict[str, object] = {
        "v": m.v, "kind": m.kind, "task": m.task, "version": m.version, "abi": m.abi,
        "entry": m.entry,
    }  # fmt: skip
    optional: dict[str, object] = {
        "summary": m.summary, "wants": [_dump_want(want) for want in m.wants], "limits": limits,
        "input": m.input, "output": m.output, "idempotent": m.idempotent,
        "source_date": m.source_date, "built_with": m.built_with, "not_after": m.not_after,
    }  # fmt: skip
    members |= {name: value for name, value in optional.items() if value}
    try:
        return strict.dump(members)  # a name that is not one of ours, all ASCII, never gets here
    except UnicodeEncodeError as error:
        raise _invalid("manifest", "not Unicode text") from error


def _dump_want(want: Want) -> dict[str, str]:
    members = {"capability": want.capability, "scope": want.scope, "reason": want.reason}
    return {name: value for name, value in members.items() if value or name == "capability"}


def _load(data: bytes) -> object:
    try:
        return strict.load(data, depth_max=_DEPTH_MAX)
    except strict.NotStrictError as error:
        raise _invalid(error.member or "manifest", error.detail) from error


def _manifest(value: object) -> Manifest:
    members = _object(value, required=_REQUIRED, optional=_OPTIONAL)
    task = _text(members, "task", _LINE)
    if not subjects.is_token(task):
        raise _invalid("task", "1 to 64 of A-Z, a-z, 0-9, _ and -")
    idempotent = members.get("idempotent", False)
    if type(idempotent) is not bool:
        raise _invalid("idempotent", "true or false")
    return Manifest(
        task=task,
        version=_text(members, "version", _VERSION),
        v=_number(members, "v", low=VERSION, high=VERSION),
        kind=_text(members, "kind", _KIND),
        summary=_text(members, "summary", _LINE),
        abi=_number(members, "abi", low=1),
        entry=_text(members, "entry", _ENTRY),
        wants=_wants(members.get("wants", [])),
        limits=_limits(members.get("limits", {})),
        input=_text(members, "input", _LINE),
        output=_text(members, "output", _LINE),
        idempotent=idempotent,
        source_date=_number(members, "source_date"),
        built_with=_text(members, "built_with", _LINE),
        not_after=_number(members, "not_after"),
    )


def _wants(value: object) -> tuple[Want, ...]:
    if type(value) is not list or len(value) > WANTS_MAX:
        raise _invalid("wants", f"a list of at most {WANTS_MAX}")
    wants: list[Want] = []
    for index, item in enumerate(value):
        inside = f"wants[{index}]."
        members = _object(item, required=_WANT_REQUIRED, optional=_WANT_OPTIONAL, inside=inside)
        wants.append(
            Want(
                capability=_text(members, "capability", _CAPABILITY, inside=inside),
                scope=_text(members, "scope", _LINE, inside=inside),
                reason=_text(members, "reason", _LINE, inside=inside),
            )
        )
    if len({(want.capability, want.scope) for want in wants}) != len(wants):
        raise _invalid("wants", "the same capability and scope twice")
    return tuple(wants)


def _limits(value: object) -> tuple[tuple[str, int], ...]:
    members = _object(value, required=frozenset(), optional=LIMITS, inside="limits.")
    return tuple(
        (name, _number(members, name, low=1, inside="limits.")) for name in sorted(members)
    )


def _object(
    value: object, *, required: frozenset[str], optional: frozenset[str], inside: str = ""
) -> Mapping[str, object]:
    if type(value) is not dict:
        raise _invalid(inside.removesuffix(".") or "manifest", "not an object")
    members: dict[str, object] = value
    if unknown := sorted(members.keys() - required - optional):
        raise _invalid(f"{inside}{shown(unknown[0])}", "no such member")
    if missing := sorted(required - members.keys()):
        raise _invalid(f"{inside}{missing[0]}", "missing")
    return members


def _text(
    members: Mapping[str, object], name: str, pattern: re.Pattern[str], *, inside: str = ""
) -> str:
    value = members.get(name, "")
    if type(value) is not str or pattern.fullmatch(value) is None:
        raise _invalid(f"{inside}{name}", "not a text of the form it must have")
    return value


def _number(
    members: Mapping[str, object], name: str, *, low: int = 0, high: int = INT_MAX, inside: str = ""
) -> int:
    value = members.get(name, 0)
    if type(value) is not int or not low <= value <= high:
        raise _invalid(f"{inside}{name}", f"not an integer from {low} to {high}")
    return value
