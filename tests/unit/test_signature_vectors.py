"""Each file that the reference implementation signed, mutilated in every way we know of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from executor.core import signature, wasm
from executor.core.signature import PublicKey, SecretKey
from executor.errors import ExecutorError

VECTORS: Final = Path(__file__).parent / "vectors" / "wasmsig"
KEYS: Final = [PublicKey.parse((VECTORS / name).read_bytes()) for name in ("k.pk", "k2.pk")]
# File → how many of the two keys signed it.
GOOD: Final = {"r.wasm": 1, "p3.wasm": 2, "pms.wasm": 1}
MAGICS: Final = (b"\0asm\x0d\0\x01\0", b"\0asm\x02\0\0\0", b"\0asm\x01\0\1\0", b"\1asm\x01\0\0\0")
ADDED: Final = (
    b"\0", bytes(4096), b"\x0c\x01\x00", wasm.custom("name", b""), wasm.custom("signature", b""),
    wasm.custom("signature_delimiter", bytes(16)),
)  # fmt: skip


def vector(name: str) -> bytes:
    """One of the files."""
    return (VECTORS / name).read_bytes()


def signers(module: bytes) -> int:
    """How many of the two keys hold for `module`; 0 for a refusal, which must be `module.*`."""
    try:
        return len(signature.verify_module(module, KEYS))
    except ExecutorError as error:
        if error.row.stage != "module":
            raise
        return 0


def changes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """`data` with one byte changed, at each place: each bit alone, all bits, and zero."""
    for index, byte in enumerate(data):
        for value in {byte ^ 1 << bit for bit in range(8)} | {byte ^ 0xFF, 0}:
            if value != byte:
                yield index, data[:index] + bytes([value]) + data[index + 1 :]


@pytest.mark.parametrize(("name", "count"), GOOD.items())
def test_the_vectors_verify(name: str, count: int) -> None:
    """Each file is believed for all who signed it: the harmless twin of what follows."""
    assert signers(vector(name)) == count


@pytest.mark.parametrize(("name", "count"), GOOD.items())
def test_every_changed_byte_costs_a_signer(name: str, count: int) -> None:
    """No file with one changed byte has as many signers as before: its threshold is not met."""
    assert [at for at, changed in changes(vector(name)) if signers(changed) >= count] == []


@pytest.mark.parametrize("name", GOOD)
def test_every_changed_byte_behind_the_signatures_costs_all(name: str) -> None:
    """What is signed by several is changed for none of them."""
    module = vector(name)
    signed = wasm.sections(module)[0].end
    assert [at for at, changed in changes(module) if at >= signed and signers(changed)] == []


@pytest.mark.parametrize("name", GOOD)
def test_a_cut_at_every_section_is_refused(name: str) -> None:
    """A file that ends with any of its sections but the last, or lacks one, has no signer."""
    module = vector(name)
    found = wasm.sections(module)
    cut = [module[: section.start] for section in found]
    cut += [module[: section.start] + module[section.end :] for section in found]
    assert [signers(each) for each in cut] == [0] * 2 * len(found)


@pytest.mark.parametrize("name", GOOD)
def test_an_extension_at_every_section_is_refused(name: str) -> None:
    """Nothing can be put in front of a section or behind the last."""
    module = vector(name)
    places = [section.start for section in wasm.sections(module)] + [len(module)]
    grown = [module[:at] + more + module[at:] for at in places for more in ADDED]
    assert [each for each in grown if signers(each)] == []


@pytest.mark.parametrize("name", GOOD)
def test_another_order_of_sections_is_refused(name: str) -> None:
    """Any two neighbouring sections that differ, swapped, are another file."""
    module = vector(name)
    found = wasm.sections(module)
    for one, two in itertools.pairwise(found):
        first, second = module[one.start : one.end], module[two.start : two.end]
        if first != second:
            assert not signers(module[: one.start] + second + first + module[two.end :])


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("magic", MAGICS)
def test_another_magic_is_refused(name: str, magic: bytes) -> None:
    """A core module cannot be passed off as a component or as another version."""
    assert signers(magic + vector(name)[wasm.HEADER :]) == 0


def test_a_signature_does_not_move_to_another_module() -> None:
    """The signatures of one file in front of the code of another are worth nothing."""
    other = signature.sign_module(vector("m.wasm") + wasm.custom("more", b""), SecretKey(bytes(32)))
    donor = vector("p3.wasm")
    section = wasm.sections(donor)[0]
    rest = other[wasm.sections(other)[0].end :]
    assert signers(donor[: section.end] + rest) == 0


@pytest.mark.parametrize("name", GOOD)
def test_the_content_has_one_name(name: str) -> None:
    """The content digest is that of the file before it was signed, whoever signs it again."""
    bare = signature.digest(vector("m.wasm"))
    module = vector(name)
    assert signature.content_digest(module) == bare == signature.content_digest(vector("m.wasm"))
    assert signature.content_digest(signature.sign_module(module, SecretKey(bytes(32)))) == bare
    assert signature.digest(module) != bare


def test_the_content_covers_the_magic() -> None:
    """Relabelled, it is another content, although the signatures do not notice."""
    module = vector("r.wasm")
    relabelled = MAGICS[0] + module[wasm.HEADER :]
    assert signature.content_digest(relabelled) != signature.content_digest(module)
