"""Pooled memory: what a guest finds in a slot, when the guests before it left all of it dirty."""

from __future__ import annotations

import random
import struct
from typing import Any, Final

import pytest

from executor.sandbox import pooling
from executor.sandbox.engine import build, installed_version
from executor.sandbox.host import Host
from executor.sandbox.linker import PublicMachine
from executor.sandbox.machine import Program
from executor.sandbox.raw import Raw, RawMachine
from tests.sandbox.conftest import Lab

ATTEMPTS: Final = 10_000
PAGE: Final = 65_536
ONE_PAGE: Final = '(memory (export "memory") 1)'
# Initial pages, pages after growth (beyond what is zeroed by hand), elements, elements after
# growth, where the data lies and how long it is, its first multiplier: one module each.
SHAPES: Final = (
    (1, 5, 8, 64, 1024, 2048, 0x9E37_79B9_7F4A_7C15),
    (2, 4, 40, 41, 65_000, 3000, 0xC2B2_AE3D_27D4_EB4F),
    (1, 3, 1, 200, 0, 512, 0x1656_67B1_9E37_79F9),
)  # fmt: skip
# How an attempt ends once it found everything clean, by the length of its input.
ENDS: Final = (
    ("", ""), ("guest.trap", "unreachable"), ("guest.trap", "integer-division-by-zero"),
    ("limit.fuel-exhausted", "out-of-fuel"), ("guest.bad-pointer", ""),
)  # fmt: skip
FUEL: Final = 2_000_000  # enough for the largest
DIRTY_FIRST: Final = len(ENDS)  # the twin: it makes the mess before it looks

_TEXT: Final = """
(global $a (mut i32) (i32.const 7)) (global $b (mut i64) (i64.const -7))
(global $c (mut f64) (f64.const 0.5)) (global $d (mut funcref) (ref.func $one))
(global $e (mut v128) (v128.const i64x2 1 2))
(table $t {elements} funcref) (elem (table $t) (i32.const 0) func $one)
(elem $spare func $one) (elem declare func $two)
(data (i32.const {at}) "{data}") (data $passive "passive!")
(type $answer (func (result i32)))
(func $one (type $answer) (i32.const 1))
(func $two (type $answer) (i32.const 2))
;; The bytes of a word that are not as they should be.
(func $differ (param i64 i64) (result i32)
 (local.set 0 (i64.xor (local.get 0) (local.get 1)))
 (local.set 0 (i64.or (local.get 0) (i64.shr_u (local.get 0) (i64.const 4))))
 (local.set 0 (i64.or (local.get 0) (i64.shr_u (local.get 0) (i64.const 2))))
 (local.set 0 (i64.or (local.get 0) (i64.shr_u (local.get 0) (i64.const 1))))
 (i32.wrap_i64 (i64.popcnt (i64.and (local.get 0) (i64.const 0x0101010101010101)))))
;; Dirty bytes from address to end: data where there is data, zero everywhere else.
(func $scan (param $at i32) (param $end i32) (result i32) (local $dirty i32) (local $want i64)
 (loop $next
  (local.set $want (select
   (i64.mul (i64.extend_i32_u (i32.add (local.get $at) (i32.const 1))) (i64.const {factor}))
   (i64.const 0)
   (i32.lt_u (i32.sub (local.get $at) (i32.const {at})) (i32.const {length}))))
  (if (i64.ne (local.get $want) (i64.load (local.get $at))) (then (local.set $dirty (i32.add
   (local.get $dirty) (call $differ (local.get $want) (i64.load (local.get $at)))))))
  (br_if $next (i32.lt_u
   (local.tee $at (i32.add (local.get $at) (i32.const 8))) (local.get $end))))
 (local.get $dirty))
;; Globals, table and segments: one for each that is not as it should be.
(func $others (result i32) (local $dirty i32) (local $place i32)
 (local.set $dirty (i32.add
  (i32.add (i32.ne (global.get $a) (i32.const 7)) (i64.ne (global.get $b) (i64.const -7)))
  (i32.add (f64.ne (global.get $c) (f64.const 0.5)) (ref.is_null (global.get $d)))))
 (local.set $dirty (i32.add (local.get $dirty) (i32.eqz
  (i8x16.all_true (i8x16.eq (global.get $e) (v128.const i64x2 1 2))))))
 (local.set $dirty (i32.add (local.get $dirty)
  (i32.ne (table.size $t) (i32.const {elements}))))
 (local.set $dirty (i32.add (local.get $dirty)
  (i32.ne (call_indirect $t (type $answer) (i32.const 0)) (i32.const 1))))
 (local.set $place (i32.const 1))
 (block $done (loop $next
  (br_if $done (i32.ge_u (local.get $place) (table.size $t)))
  (local.set $dirty (i32.add (local.get $dirty)
   (i32.eqz (ref.is_null (table.get $t (local.get $place))))))
  (local.set $place (i32.add (local.get $place) (i32.const 1)))
  (br $next)))
 (local.get $dirty))
;; Segments that another instance dropped would trap here.
(func $segments
 (memory.init $passive (i32.const 16) (i32.const 0) (i32.const 8))
 (table.init $t $spare (i32.const 0) (i32.const 0) (i32.const 1)))
(func $mess
 (memory.fill (i32.const 0) (i32.const 0xAA) (i32.const {bytes_max}))
 (global.set $a (i32.const 0xAA)) (global.set $b (i64.const 0xAA))
 (global.set $c (f64.const 170)) (global.set $d (ref.null func))
 (global.set $e (v128.const i64x2 0xAA 0xAA))
 (drop (table.grow $t (ref.func $two) (i32.const {elements_more})))
 (table.fill $t (i32.const 0) (ref.func $two) (table.size $t))
 (table.set $t (i32.const 0) (ref.func $two))
 (data.drop $passive) (elem.drop $spare))
(func (export "run") (result i32) (local $dirty i32) (local $end i32)
 (local.set $end (call $input_len))
 (if (i32.ne (memory.size) (i32.const {pages})) (then (local.set $dirty (i32.const 1))))
 (if (i32.ne (local.get $end) (i32.const {dirty_first})) (then
  (local.set $dirty (i32.add (local.get $dirty)
   (call $scan (i32.const 0) (i32.const {bytes}))))))
 (if (i32.ne (memory.grow (i32.const {pages_more})) (i32.const {pages}))
  (then (local.set $dirty (i32.add (local.get $dirty) (i32.const 1)))))
 (if (i32.eq (local.get $end) (i32.const {dirty_first})) (then
  (call $mess)
  (local.set $dirty (call $scan (i32.const 0) (i32.const {bytes})))))
 (local.set $dirty (i32.add (local.get $dirty)
  (call $scan (i32.const {bytes}) (i32.const {bytes_max}))))
 (local.set $dirty (i32.add (local.get $dirty) (call $others)))
 (if (i32.ne (local.get $end) (i32.const {dirty_first})) (then (call $segments) (call $mess)))
 (i32.store (i32.const 0) (local.get $dirty))
 (call $output_write (i32.const 0) (i32.const 4))
 (i32.store (i32.const 0) (i32.const 0xAAAAAAAA))
 ;; A guest that found dirt always returns, to tell.
 (if (i32.eqz (local.get $dirty)) (then
  (if (i32.eq (local.get $end) (i32.const 1)) (then unreachable))
  (if (i32.eq (local.get $end) (i32.const 2)) (then (drop (i32.div_s (i32.const 1) (i32.const 0)))))
  (if (i32.eq (local.get $end) (i32.const 3)) (then (loop $on (br $on))))
  (if (i32.eq (local.get $end) (i32.const 4)) (then
   (call $output_write (i32.const -1) (i32.const 2))))))
 (i32.const 0))
"""


def body(
    pages: int, pages_max: int, elements: int, elements_max: int, at: int, length: int, factor: int
) -> str:
    """A guest of this shape."""
    words = (struct.pack("<Q", (a + 1) * factor % 2**64) for a in range(at, at + length, 8))
    return _TEXT.format(
        pages=pages, pages_more=pages_max - pages, bytes=pages * PAGE, bytes_max=pages_max * PAGE,
        elements=elements, elements_more=elements_max - elements, at=at, length=length,
        factor=factor, data="".join(f"\\{byte:02x}" for byte in b"".join(words)),
        dirty_first=DIRTY_FIRST,
    )  # fmt: skip


@pytest.fixture(params=["raw", "public"])
def lab(request: pytest.FixtureRequest) -> Lab:
    """Memory and tables come from a pool, on either path."""
    return Lab(build(), Raw(installed_version()) if request.param == "raw" else None)


Guest = tuple[Program, Host]


@pytest.fixture
def guests(lab: Lab) -> list[Guest]:
    """One more module than there are slots, so that none can keep a slot for itself."""
    assert len(SHAPES) > pooling.SLOTS
    return [
        lab.program(lab.text(body(*shape)).replace(ONE_PAGE, ONE_PAGE.replace("1", str(shape[0]))))
        for shape in SHAPES
    ]


@pytest.mark.parametrize("place", range(len(SHAPES)))
def test_dirt_is_counted(lab: Lab, guests: list[Guest], place: int) -> None:
    """The twin: a guest that looks at its own mess finds every byte and everything beside it."""
    program, host = guests[place]
    done = lab.attempt(program, host, input=bytes(DIRTY_FIRST))
    assert (done.code, done.message) == ("", "")
    _, pages, _, elements, _, length, _ = SHAPES[place]
    (dirty,) = struct.unpack("<I", done.output)
    # A byte of the data may be 0xAA by chance; the globals are 5, and the table's size is one.
    assert pages * PAGE - length < dirty <= pages * PAGE + 5 + 1 + elements


def test_no_guest_finds_what_another_left(
    lab: Lab, guests: list[Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """10,000 attempts of three modules, each leaves everything dirty, most by a trap: 0 bytes."""
    where: list[int] = []
    kind = PublicMachine if lab.raw is None else RawMachine
    plain = kind.instantiate

    def instantiate(machine: Any) -> None:
        plain(machine)
        where.append(machine.locate()[0])

    monkeypatch.setattr(kind, "instantiate", instantiate)
    chosen = random.Random(6)
    slots: dict[int, set[int]] = {place: set() for place in range(len(guests))}
    found: dict[int, tuple[str, str, bytes]] = {}
    for number in range(ATTEMPTS):
        place, end = chosen.randrange(len(guests)), chosen.randrange(len(ENDS))
        done = lab.attempt(*guests[place], input=bytes(end), fuel=FUEL)
        slots[place].add(where[-1])
        ended = (done.code, dict(done.facts).get("trap", ""))
        # One that found anything returns it, however it was to end.
        if ended != ENDS[end] or (not end and done.output != bytes(4)):
            found[number] = (*ended, done.output)
    assert found == {}
    assert len(where) == ATTEMPTS
    # It was the pool, and its slots went from module to module.
    assert len(set(where)) == pooling.SLOTS
    assert all(seen == set(where) for seen in slots.values())
