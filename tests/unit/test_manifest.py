"""The manifest: one spelling, every member bounded, asked for and never granted."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from executor.core import manifest, wasm
from executor.core.manifest import Manifest, Want
from executor.errors import ExecutorError

CORE = b"\0asm\x01\0\0\0"
COMPONENT = b"\0asm\x0d\0\x01\0"

SMALL = Manifest(task="resize", version="1.0.0")
FULL = Manifest(
    task="resize",
    version="1.0.0",
    summary="Makes pictures smaller „schnell“ 🚀",
    wants=(
        Want("executor:kv@1", scope="thumbs/", reason="keeps what it made"),
        Want("executor:kv@1", scope="counts/"),
        Want("executor:log@1"),
    ),
    limits=(("deadline_ms", 500), ("fuel", 2**53 - 1), ("memory_bytes", 1)),
    input="image/png",
    output="image/webp",
    idempotent=True,
    source_date=1_700_000_000_000,
    built_with='zig "0.17.1" \\ sdk 1',
    not_after=1_900_000_000_000,
)


def canonical(members: object) -> bytes:
    """Spell `members` as RFC 8785 does for ASCII names and integers."""
    return json.dumps(
        members, ensure_ascii=False, sort_keys=True, separators=(",", ":")
    ).encode()  # fmt: skip


def members(**changes: object) -> dict[str, Any]:
    """Return the members of the smallest manifest with some changed; None leaves one out."""
    base: dict[str, object] = {
        "v": 1, "kind": "core", "task": "t", "version": "1", "abi": 1, "entry": "run",
    }  # fmt: skip
    return {name: value for name, value in (base | changes).items() if value is not None}


def refusal(data: bytes) -> str:
    """Return the detail with which `data` is refused."""
    with pytest.raises(ExecutorError) as caught:
        manifest.decode(data)
    assert caught.value.code == "module.manifest-invalid"
    return caught.value.detail


def test_the_smallest_manifest_has_one_known_spelling() -> None:
    """The bytes are part of the format: they are what gets signed."""
    assert manifest.encode(SMALL) == (
        b'{"abi":1,"entry":"run","kind":"core","task":"resize","v":1,"version":"1.0.0"}'
    )


def test_a_full_manifest_has_one_known_spelling() -> None:
    """Names are sorted at every level, text stays UTF-8, only quote and backslash are escaped."""
    assert manifest.encode(FULL).decode() == (
        '{"abi":1,"built_with":"zig \\"0.17.1\\" \\\\ sdk 1","entry":"run","idempotent":true,'
        '"input":"image/png","kind":"core",'
        '"limits":{"deadline_ms":500,"fuel":9007199254740991,"memory_bytes":1},'
        '"not_after":1900000000000,"output":"image/webp","source_date":1700000000000,'
        '"summary":"Makes pictures smaller „schnell“ 🚀","task":"resize","v":1,"version":"1.0.0",'
        '"wants":[{"capability":"executor:kv@1","reason":"keeps what it made","scope":"thumbs/"},'
        '{"capability":"executor:kv@1","scope":"counts/"},{"capability":"executor:log@1"}]}'
    )


@pytest.mark.parametrize("m", [SMALL, FULL, replace(FULL, kind="component", abi=2, entry="_go")])
def test_what_is_written_is_read(m: Manifest) -> None:
    """Decoding gives back the manifest that was encoded."""
    assert manifest.decode(manifest.encode(m)) == m


def test_limits_are_sorted_when_read() -> None:
    """The order in which limits were given does not make another manifest."""
    turned = replace(FULL, limits=FULL.limits[::-1])
    assert manifest.encode(turned) == manifest.encode(FULL)


@pytest.mark.covers("module.manifest-invalid")
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"v": 2}, "v"),
        ({"v": None}, "v"),
        ({"v": True}, "v"),
        ({"kind": "command"}, "kind"),
        ({"task": ""}, "task"),
        ({"task": "a.b"}, "task"),
        ({"task": "a" * 65}, "task"),
        ({"task": 1}, "task"),
        ({"version": ""}, "version"),
        ({"version": "1" * 65}, "version"),
        ({"version": "1\n"}, "version"),
        ({"version": "é"}, "version"),
        ({"abi": 0}, "abi"),
        ({"abi": "1"}, "abi"),
        ({"entry": ""}, "entry"),
        ({"entry": "a b"}, "entry"),
        ({"summary": "a\nb"}, "summary"),
        ({"summary": "\x1b[2J"}, "summary"),
        ({"summary": "\u202egnp.exe"}, "summary"),
        ({"summary": "a" * 257}, "summary"),
        ({"summary": ["a"]}, "summary"),
        ({"input": 7}, "input"),
        ({"output": {"schema": "x"}}, "output"),
        ({"idempotent": 1}, "idempotent"),
        ({"source_date": -1}, "source_date"),
        ({"built_with": "\x7f"}, "built_with"),
        ({"not_after": "never"}, "not_after"),
        ({"extra": 1}, "extra"),
        ({"täsk": 1}, "t\\xe4sk"),
        ({"wants": {}}, "wants"),
        ({"wants": ["executor:kv@1"]}, "wants[0]"),
        ({"wants": [{"capability": "executor:kv@1"}] * 2}, "wants"),
        ({"wants": [{"capability": f"a:b@{n}"} for n in range(65)]}, "wants"),
        ({"wants": [{"capability": "a:b@1"}, {"capability": "kv"}]}, "wants[1].capability"),
        ({"wants": [{"capability": "executor:kv@1.kv_get"}]}, "wants[0].capability"),
        ({"wants": [{"scope": "a"}]}, "wants[0].capability"),
        ({"wants": [{"capability": "a:b@1", "scope": 1}]}, "wants[0].scope"),
        ({"wants": [{"capability": "a:b@1", "reason": "\0"}]}, "wants[0].reason"),
        ({"wants": [{"capability": "a:b@1", "also": ""}]}, "wants[0].also"),
        ({"limits": []}, "limits"),
        ({"limits": {"fuel": 0}}, "limits.fuel"),
        ({"limits": {"fuel": False}}, "limits.fuel"),
        ({"limits": {"cpu": 1}}, "limits.cpu"),
    ],
)
def test_every_member_is_checked(changes: dict[str, object], field: str) -> None:
    """A member of another type, form or range, or an unknown one, is refused by its name."""
    assert refusal(canonical(members(**changes))).startswith(f"`{field}`: ")


@pytest.mark.covers("module.manifest-invalid")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xef\xbb\xbf" + canonical(members()),
        canonical(members()).decode().encode("utf-16"),
        b"\xff" + canonical(members()),
        canonical(members()) + b"\n",
        b" " + canonical(members()),
        json.dumps(members(), sort_keys=True).encode(),
        json.dumps(members(), separators=(",", ":")).encode(),
        canonical(members(summary="")),
        canonical(members(wants=[])),
        canonical(members(limits={})),
        canonical(members(idempotent=False)),
        canonical(members(source_date=0)),
        canonical(members()).replace(b'"run"', b'"\\u0072un"'),
        canonical(members()).replace(b'"v":1', b'"v":1.0'),
        canonical(members()).replace(b'"v":1', b'"v":1e0'),
        canonical(members()).replace(b'"v":1', b'"v":NaN'),
        canonical(members(source_date=2**53)),
        canonical(members()).replace(b'"v":1', b'"v":' + b"1" * 5000),
        canonical(members()).replace(b'"v":1', b'"v":1,"v":1'),
        canonical(members(limits={"fuel": 7})).replace(b'"fuel":7', b'"fuel":7,"fuel":7'),
        canonical(members()).replace(b'"t"', b'"\\ud800"'),
        b"[" * 60_000,
        b'{"a":' * 10_000,
        canonical(members(summary=[[[]]])),
        b'"' + b'\\"' * 32_000,
        canonical(members()) + b" " * manifest.MANIFEST_MAX,
    ],
    ids=[
        "empty", "list", "null", "cut", "byte order mark", "UTF-16", "not UTF-8", "newline",
        "leading space", "spaces", "unsorted", "empty text", "empty list", "empty object",
        "false", "zero", "escape", "float", "exponent", "NaN", "2^53", "5000 digits",
        "name twice", "name twice inside", "half a surrogate", "deep lists", "deep objects",
        "one level too deep", "endless string", "too large",
    ],
)  # fmt: skip
def test_other_spellings_are_refused(data: bytes) -> None:
    """What means the same in other bytes, or nothing at all, is not a manifest."""
    assert refusal(data)


def test_the_reason_is_named() -> None:
    """What is missing or stands twice is called that, and not a matter of spelling."""
    twice = canonical(members(limits={"fuel": 7})).replace(b'"fuel":7', b'"fuel":7,"fuel":7')
    assert refusal(twice) == "`fuel`: twice in one object"
    assert refusal(canonical(members(entry=None))) == "`entry`: missing"


def test_bounds_are_inclusive() -> None:
    """64 wants pass, and 64 KiB are looked at."""
    most = replace(SMALL, wants=tuple(Want(f"a:b@{number}") for number in range(64)))
    assert manifest.decode(manifest.encode(most)) == most
    assert refusal(b" " * manifest.MANIFEST_MAX) == "`manifest`: not JSON"


def test_brackets_in_text_do_not_count_as_depth() -> None:
    """The bound on depth looks at structure and not at what stands in strings."""
    m = replace(SMALL, summary='[[[[{{{{"[[[[\\')
    assert manifest.decode(manifest.encode(m)) == m


@pytest.mark.parametrize(
    "m",
    [
        replace(SMALL, task="no token"),
        replace(SMALL, summary="\ud800"),
        replace(SMALL, limits=(("fuel", 1), ("fuel", 2))),
        replace(SMALL, not_after=2**53),
        replace(SMALL, wants=(Want(""),)),
        replace(SMALL, wants=tuple(Want(f"a:b@{n}", "s" * 256, "r" * 256) for n in range(999))),
    ],
)
def test_nothing_is_written_that_would_not_be_read(m: Manifest) -> None:
    """The builder hears of a mistake, not the host that loads the module."""
    with pytest.raises(ExecutorError) as caught:
        manifest.encode(m)
    assert caught.value.code == "module.manifest-invalid"


def test_append_and_read() -> None:
    """A manifest is the last section of the file and reads back from there."""
    module = manifest.append(CORE + b"\x01\x00", FULL)
    assert module.startswith(CORE + b"\x01\x00")
    assert manifest.read(module) == FULL
    assert manifest.read(manifest.append(COMPONENT, replace(FULL, kind="component")))


@pytest.mark.covers("module.manifest-invalid")
def test_there_is_exactly_one() -> None:
    """No manifest, or two of them, leave open what the module asks for."""
    once = manifest.append(CORE, SMALL)
    twice = once + wasm.custom(manifest.SECTION, manifest.encode(SMALL))
    for module in (CORE, twice):
        with pytest.raises(ExecutorError, match="exactly 1 is needed"):
            manifest.read(module)
    with pytest.raises(ExecutorError, match="already"):
        manifest.append(once, SMALL)


@pytest.mark.covers("module.manifest-invalid")
def test_the_kind_is_that_of_the_file() -> None:
    """Changing the magic, which no signature covers, does not turn a module into a component."""
    module = manifest.append(CORE, SMALL)
    with pytest.raises(ExecutorError, match="`kind`: core, but the file is a component"):
        manifest.read(COMPONENT + module[len(CORE) :])
    with pytest.raises(ExecutorError, match="`kind`: component, but the file is a core"):
        manifest.append(CORE, replace(SMALL, kind="component"))


def test_a_manifest_that_is_too_large_is_not_parsed() -> None:
    """The bound on the section counts before anything in it is looked at."""
    module = CORE + wasm.custom(manifest.SECTION, b"[" * (manifest.MANIFEST_MAX + 1))
    with pytest.raises(ExecutorError, match="65537 bytes, at most 65536"):
        manifest.read(module)
