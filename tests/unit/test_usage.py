"""What tasks used: counted, bounded, merged, read back, and the least that passes it again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from executor import config_document
from executor.core import usage
from executor.core.policy import Grant
from executor.core.scopes import EVERY
from executor.core.usage import KEYS_MAX, TASKS_MAX, TaskUse, Usage
from executor.errors import ExecutorError
from executor.model import KvScope

GRANT: Final = Grant(
    "acme", "*", "tests", capabilities=frozenset({"log", "kv"}), kv=KvScope("own/", write=EVERY)
)
DAY: Final = 86_400_000


def used(**changes: Any) -> TaskUse:
    """A task that read two keys and wrote one."""
    use = TaskUse(
        10, 20, 3, "sha256:aa", ("kv_get", "kv_put", "log_write"), ("ci",),
        {"kv_get": (2, 15), "kv_put": (1, 20)}, "own/", ("a", "b/*"), ("a",), {"fuel": 7}, {"x": 1},
    )  # fmt: skip
    return replace(use, **changes)


def test_it_reads_what_it_wrote() -> None:
    """All of a usage comes back as it was."""
    one = Usage({"hello": used(), "other": TaskUse(1)}, {"ab": 5}, "strict")
    assert usage.decode(usage.encode(one)) == one


_GOOD: Final = json.loads(usage.encode(Usage({"hello": used()}, {"ab": 5}, "s")))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b"[" * 50_000, b'{"v": 1}', b"\xff",
        *(json.dumps({**_GOOD, "tasks": {"hello": {**_GOOD["tasks"]["hello"], name: bad}}}).encode()
          for name, bad in (("runs", "3"), ("digest", 3), ("imports", "x"), ("signers", [1]),
                            ("used", {"kv_get": 1}), ("used", {"kv_get": [1, "x"]}),
                            ("most", []), ("denied", {"x": True}), ("read", None),
                            ("runs", 10**4299), ("last", -1), ("used", {"kv_get": [2**60, 1]}),
                            ("read", ["k"] * 100))),
        json.dumps({**_GOOD, "grants": {"ab": "5"}}).encode(),
        json.dumps({**_GOOD, "shadow": None}).encode(),
        json.dumps({**_GOOD, "v": 2}).encode(),
    ],
)  # fmt: skip
def test_what_is_no_usage(data: bytes) -> None:
    """Anything else is refused with a code, whatever it holds."""
    with pytest.raises(ExecutorError) as caught:
        usage.decode(data)
    assert caught.value.code in {"message.malformed", "message.version-unknown"}


def test_it_is_bounded() -> None:
    """More tasks than are kept, and longer ones than fit: the latest stay."""
    many = {f"t{n}": used(last=n) for n in range(TASKS_MAX + 9)}
    found = usage.decode(usage.encode(Usage(many)))
    assert len(found.tasks) == TASKS_MAX
    assert "t0" not in found.tasks
    keys = tuple(f"{n}{'k' * 500}" for n in range(KEYS_MAX))
    data = usage.encode(Usage({f"t{n}": used(last=n, read=keys) for n in range(20)}))
    assert len(data) <= usage.BYTES_MAX
    assert "t19" in usage.decode(data).tasks
    huge = Usage({}, {f"{n:060}": 1 for n in range(900)})
    assert usage.decode(usage.encode(huge)) == huge
    use = TaskUse(0)
    assert [use.deny(str(n)) for n in range(40)] == [True] * 40
    assert len(use.denied) == 32
    assert (use.deny("0", 5), use.denied["0"]) == (False, 6)


def test_two_executors_see_one_task() -> None:
    """Runs add up, the latest module counts, keys of another prefix do not mix."""
    one, other = Usage({"hello": used()}, {"ab": 5, "cd": 9}), Usage(
        {"hello": used(last=30, digest="sha256:bb", read=("c",), used={"log_write": (1, 30)},
                       most={"fuel": 3, "calls": 1}), "new": used()}, {"ab": 3}, "s",
    )  # fmt: skip
    one.add(other)
    both = one.tasks["hello"]
    assert (both.runs, both.last, both.digest) == (6, 30, "sha256:bb")
    assert both.used == {"kv_get": (2, 15), "kv_put": (1, 20), "log_write": (1, 30)}
    assert (both.read, both.write) == (("a", "b/*", "c"), ("a",))
    assert (both.most, both.denied) == ({"fuel": 7, "calls": 1}, {"x": 2})
    assert set(one.tasks) == {"hello", "new"}
    assert (one.grants, one.shadow) == ({"ab": 3, "cd": 9}, "s")
    both.add(used(prefix="old/", last=5))
    assert both.prefix == "own/"
    both.add(used(prefix="new/", last=99, read=("z",), write=()))
    assert (both.prefix, both.read, both.write) == ("new/", ("z",), ())


def test_no_number_grows_beyond_what_can_be_written() -> None:
    """Whoever says the most: what it is added to is still a usage that everyone reads."""
    most = used(runs=2**53, used={"kv_get": (2**53, 1)}, denied={"x": 2**53})
    said = Usage({"hello": most})
    together = usage.decode(usage.encode(said))
    together.add(usage.decode(usage.encode(said)))
    assert usage.decode(usage.encode(together)).tasks["hello"].runs == 2**53


def test_grants_are_known_by_what_they_give() -> None:
    """Another reason or limit makes no new grant; what is no longer there is forgotten."""
    one = Usage()
    one.see([GRANT], 5)
    again = replace(GRANT, why="other", limits=(("fuel", 1),))
    wider = replace(GRANT, kv=KvScope(""))
    one.see([again, wider], 9)
    assert one.grants == {usage.name_of(GRANT): 5, usage.name_of(wider): 9}
    one.see([wider, replace(GRANT, kv=None)], 12)
    assert one.grants[usage.name_of(wider)] == 9
    assert usage.name_of(GRANT) not in one.grants


def test_every_capability_of_a_grant_is_reviewed() -> None:
    """Used, never called, or not even imported; grants of other tasks, signers and keys apart."""
    seen = {usage.name_of(GRANT): 4}
    clock = Grant("acme", "hello", "t", capabilities=frozenset({"clock"}))
    stranger = replace(GRANT, signer="stranger")
    elsewhere = replace(GRANT, kv=KvScope("own/z/"), capabilities=frozenset({"kv"}))
    nowhere = replace(GRANT, tenant="zebra", capabilities=frozenset({"log"}))
    found = usage.review(
        [GRANT, clock, stranger, elsewhere, nowhere], {"acme": Usage({"hello": used()}, seen)}
    )
    assert [(f.capability, f.since, f.last, f.runs, f.imported) for f in found] == [
        ("kv", 4, 20, 3, True), ("log", 4, 0, 3, True), ("clock", 0, 0, 3, False),
        ("kv", 0, 0, 0, False), ("log", 0, 0, 0, False), ("kv", 0, 0, 3, True),
        ("log", 0, 0, 0, False),
    ]  # fmt: skip
    assert [f.unused_ms(DAY) for f in found[:3]] == [DAY - 20, DAY - 4, 0]


def test_keys_that_are_read_are_not_written() -> None:
    """A grant to read is of use to who reads what it names."""
    reads = replace(GRANT, kv=KvScope("own/", ("q", "b/c")), capabilities=frozenset({"kv"}))
    (found,) = usage.review([reads], {"acme": Usage({"hello": used()})})
    assert found.last == 15
    (found,) = usage.review([reads], {"acme": Usage({"hello": used(read=("a",))})})
    assert found.last == 0
    logs = replace(GRANT, capabilities=frozenset({"log"}))
    (found,) = usage.review([logs], {"acme": Usage({"hello": used(used={"log_write": (1, 9)})})})
    assert found.last == 9


@pytest.mark.parametrize(
    ("changes", "scopes"),
    [
        ({}, [KvScope("own/", ("a",), ("a",)), KvScope("own/", ("a", "b/*"))]),
        ({"read": ("a",)}, [KvScope("own/", ("a",), ("a",))]),
        ({"imports": ("kv_get",), "write": ()}, [KvScope("own/", ("a", "b/*"))]),
        ({"read": (), "write": (), "used": {}}, [KvScope("own/", ("",), ("",))]),
        ({"imports": ("log_write",)}, [None]),
    ],
)
def test_the_least_grant_is_one(changes: dict[str, Any], scopes: list[KvScope | None]) -> None:
    """What is written parses, gives every import and, of keys, those that were used."""
    use = used(**changes)
    text = usage.smallest("acme", "hello", use, 'says "no"\n\x7f')
    head = '[[tenant]]\nname = "acme"\n'
    document = config_document.parse(f"{head}{text}".encode(), name="p", folder=Path())
    assert [grant.kv for grant in document.grants] == scopes
    first = document.grants[0]
    assert (first.task, first.signer, first.why) == ("hello", "ci", 'says "no"\n\x7f')
    assert all(any(g.gives(name) for g in document.grants) for name in use.imports)
    assert first.capabilities == {"kv", "log"} & {name.partition("_")[0] for name in use.imports}
    assert ("never called" in text) is ("log_write" in use.imports)
    several = usage.smallest("acme", "hello", used(signers=("a", "b")), "w")
    assert "signer" not in several
