"""Framing, manifests, signatures and proofs over inputs nobody thought of; seeds are fixed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.core import manifest, signature, strict, wasm
from executor.core.manifest import Manifest, Want
from executor.core.signature import BatchVerifier, Proof, PublicKey, SecretKey
from executor.errors import ExecutorError

MAGIC = b"\0asm\x01\0\0\0"
A, B = SecretKey(bytes([1]) * 32), SecretKey(bytes([2]) * 32)


@contextmanager
def only(*codes: str) -> Iterator[None]:
    """Pass over the errors that are promised; any other is the test's failure."""
    try:
        yield
    except ExecutorError as error:
        if error.code not in codes:
            raise


fixed = settings(derandomize=True, deadline=None, max_examples=200)

plain = st.builds(
    lambda id_, content: bytes([id_]) + wasm.uleb(len(content)) + content,
    st.integers(1, 13),
    st.binary(max_size=300),
)
named = st.builds(
    wasm.custom,
    st.text(st.characters(codec="utf-8"), max_size=40).filter(lambda n: "signature" not in n),
    st.binary(max_size=40),
)
modules = st.lists(plain | named, max_size=6).map(lambda parts: MAGIC + b"".join(parts))

line = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E) | st.sampled_from("äß😀"))
short = line.map(lambda text: text[:256])
token = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
number = st.integers(0, strict.INT_MAX)
wants = st.lists(
    st.builds(
        Want, st.from_regex(r"[a-z]{1,9}:[a-z]{1,9}@[0-9]{1,3}", fullmatch=True), short, short
    ),
    max_size=4,
    unique_by=lambda want: (want.capability, want.scope),
).map(tuple)
limits = st.dictionaries(
    st.sampled_from(sorted(manifest.LIMITS)), st.integers(1, strict.INT_MAX)
).map(lambda found: tuple(sorted(found.items())))
manifests = st.builds(
    Manifest,
    task=token, version=st.from_regex(r"[ -~]{1,64}", fullmatch=True), summary=short,
    abi=st.integers(1, strict.INT_MAX), entry=token, wants=wants, limits=limits, input=short,
    output=short, idempotent=st.booleans(), source_date=number, built_with=short, not_after=number,
)  # fmt: skip


@fixed
@given(st.integers(0, 2**32 - 1), st.binary(max_size=3))
def test_numbers_read_back(value: int, tail: bytes) -> None:
    """Every u32 is read as it was written, whatever follows."""
    encoded = wasm.uleb(value)
    assert wasm.read_uleb(encoded + tail, 0, minimal=True) == (value, len(encoded))


@fixed
@given(st.binary(max_size=200))
def test_any_bytes_are_sections_or_refused(data: bytes) -> None:
    """Sections fill the file without gap or overlap, or the file is no module."""
    module = MAGIC + data
    with only("module.invalid"):
        found = wasm.sections(module)
        assert [section.start for section in found[1:]] == [section.end for section in found[:-1]]
        assert all(s.start < s.payload <= s.end <= len(module) for s in found)


@fixed
@given(manifests)
def test_manifests_read_back(m: Manifest) -> None:
    """Every manifest that can be written is read as it was."""
    assert manifest.decode(manifest.encode(m)) == m


@fixed
@given(st.binary(max_size=80) | st.text('{}[]":,tv01\\u\n', max_size=80).map(str.encode))
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    """No bytes raise anything but the manifest's own code."""
    with only("module.manifest-invalid"):
        manifest.decode(data)


@fixed
@given(manifests, st.data())
def test_a_manifest_has_one_spelling(m: Manifest, data: st.DataObject) -> None:
    """A changed byte gives another manifest or none, never the same one again."""
    encoded = bytearray(manifest.encode(m))
    index = data.draw(st.integers(0, len(encoded) - 1))
    encoded[index] ^= data.draw(st.integers(1, 255))
    with only("module.manifest-invalid"):
        assert manifest.decode(bytes(encoded)) != m


@fixed
@given(modules)
def test_signed_modules_verify(module: bytes) -> None:
    """Any module can be signed, by one and then another, and keeps its content."""
    signed = signature.sign_module(signature.sign_module(module, A), B)
    assert signed.endswith(module[len(MAGIC) :])
    assert signature.verify_module(signed, [B.public, A.public]) == (B.public, A.public)


@fixed
@given(modules, st.data())
def test_no_flipped_bit_verifies(module: bytes, data: st.DataObject) -> None:
    """A signed module with any bit changed is refused or says nothing of its signer."""
    signed = bytearray(signature.sign_module(module, A))
    index = data.draw(st.integers(0, len(signed) - 1))
    signed[index] ^= 1 << data.draw(st.integers(0, 7))
    with only("module.invalid", "module.unsigned", "module.signature-invalid"):
        assert signature.verify_module(bytes(signed), [A.public]) == ()


@fixed
@given(st.binary(max_size=200), modules)
def test_any_section_of_signatures_is_refused(content: bytes, module: bytes) -> None:
    """No bytes in place of signatures raise anything but their own code."""
    forged = MAGIC + wasm.custom(signature.SECTION, content) + module[len(MAGIC) :]
    with pytest.raises(ExecutorError, match=r"module\.signature-invalid"):
        signature.verify_module(forged, [A.public])


@fixed
@given(st.binary(max_size=120) | st.text(max_size=80).map(lambda text: "ed25519:" + text))
def test_any_bytes_are_a_key_or_refused(form: bytes | str) -> None:
    """No bytes raise anything but the configuration's code, and one key has one text."""
    with only("config.invalid"):
        key = PublicKey.parse(form)
        assert PublicKey.parse(key.text) == key


hashes = st.binary(min_size=32, max_size=32)
proofs = st.builds(
    Proof,
    count=st.integers(-1, 70),
    index=st.integers(-1, 70),
    path=st.binary(max_size=200),
    signature=st.binary(max_size=70),
)


@fixed
@given(hashes, proofs)
def test_no_invented_proof_holds(leaf: bytes, proof: Proof) -> None:
    """Any proof that the key did not sign is false, without an exception."""
    assert not signature.verify_proof(A.public, leaf, proof)


def leaves_of(count: int) -> list[bytes]:
    """Return `count` different leaves."""
    return [hashlib.sha256(bytes([number])).digest() for number in range(count)]


@pytest.mark.parametrize("count", range(1, 65))
def test_every_place_of_every_batch_verifies(count: int) -> None:
    """Batches of 1 to 64 give each leaf a proof of its own, of at most six steps."""
    leaves = leaves_of(count)
    proofs = signature.sign_batch(A, leaves)
    verifier = BatchVerifier()
    assert [proof.index for proof in proofs] == list(range(count))
    for leaf, proof in zip(leaves, proofs, strict=True):
        assert len(proof.path) <= 32 * 6
        assert verifier.verify(A.public, leaf, proof)
    assert signature.verify_proof(A.public, leaves[-1], proofs[-1])


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 32, 33, 64])
def test_a_proof_holds_for_its_place_alone(count: int) -> None:
    """No other index, count, leaf or key fits a proof."""
    leaves = leaves_of(count)
    for leaf, proof in zip(leaves, signature.sign_batch(A, leaves), strict=True):
        wrong = [replace(proof, index=n) for n in range(-1, 66) if n != proof.index]
        wrong += [replace(proof, count=n) for n in range(-1, 66) if n != count]
        assert not any(signature.verify_proof(A.public, leaf, other) for other in wrong)
        assert not signature.verify_proof(B.public, leaf, proof)
        assert not signature.verify_proof(A.public, leaf[:-1], proof)
        assert not signature.verify_proof(A.public, bytes(32), proof)


def test_a_path_has_its_exact_bytes() -> None:
    """A path that is longer, shorter or changed anywhere proves nothing."""
    leaves = leaves_of(7)
    for leaf, proof in zip(leaves, signature.sign_batch(A, leaves), strict=True):
        path = proof.path
        wrong = [path[:-1], path[:-32], path + b"\0", path + bytes(32), b"", path[32:]]
        wrong += [path[:n] + bytes([path[n] ^ 1]) + path[n + 1 :] for n in range(len(path))]
        for other in wrong:
            assert not signature.verify_proof(A.public, leaf, replace(proof, path=other))


@fixed
@given(st.integers(1, 64), st.data())
def test_proofs_hold_for_their_leaf_alone(count: int, data: st.DataObject) -> None:
    """In a batch of any size a proof holds for its leaf and not with one bit changed."""
    leaves = leaves_of(count)
    index = data.draw(st.integers(0, count - 1))
    proof = signature.sign_batch(A, leaves)[index]
    assert signature.verify_proof(A.public, leaves[index], proof)
    whole = bytearray(leaves[index] + proof.signature + proof.path)
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    changed = replace(proof, signature=bytes(whole[32:96]), path=bytes(whole[96:]))
    assert not signature.verify_proof(A.public, bytes(whole[:32]), changed)


@pytest.mark.parametrize("leaves", [[], leaves_of(65), [bytes(31)], [bytes(32), bytes(33)]])
def test_only_batches_that_verify_are_signed(leaves: list[bytes]) -> None:
    """A batch is 1 to 64 hashes."""
    with pytest.raises(ValueError, match="1 to 64 leaves"):
        signature.sign_batch(A, leaves)


class Counting:
    """A public key that counts how often it is asked."""

    def __init__(self, key: PublicKey) -> None:
        self.raw = key.raw
        self.asked = 0
        self._key = key

    def verify(self, signed: bytes, message: bytes) -> bool:
        """Count and pass on."""
        self.asked += 1
        return self._key.verify(signed, message)


def test_a_batch_costs_one_signature() -> None:
    """However many outcomes of a batch are read, its signature is verified once."""
    leaves = leaves_of(64)
    key, verifier = Counting(A.public), BatchVerifier()
    for leaf, proof in zip(leaves, signature.sign_batch(A, leaves), strict=True):
        assert verifier.verify(key, leaf, proof)  # type: ignore[arg-type]
    assert key.asked == 1


def test_what_did_not_hold_is_asked_again() -> None:
    """Only success is remembered, with all that was signed: a guess is never helped by a hit."""
    leaves = leaves_of(2)
    proof, other = signature.sign_batch(A, leaves)
    key, verifier = Counting(A.public), BatchVerifier()
    assert verifier.verify(key, leaves[0], proof)  # type: ignore[arg-type]
    for wrong in (replace(proof, signature=bytes(64)), replace(proof, path=bytes(32))):
        for _ in range(2):
            assert not verifier.verify(key, leaves[0], wrong)  # type: ignore[arg-type]
    assert key.asked == 5
    assert not verifier.verify(B.public, leaves[0], proof)
    assert not verifier.verify(A.public, leaves[0], replace(proof, count=0))
    root = hashlib.sha256(b"\1" + leaves[0] + leaves[1]).digest()
    assert not verifier.verify(A.public, root, Proof(1, 0, b"", other.signature))


def test_the_memory_of_batches_is_bounded() -> None:
    """The batch that was not used for longest is forgotten first."""
    batches = [(leaf, signature.sign_batch(A, [leaf])[0]) for leaf in leaves_of(3)]
    key, verifier = Counting(A.public), BatchVerifier(capacity=2)
    for number, asked in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
        assert verifier.verify(key, *batches[number])  # type: ignore[arg-type]
        assert key.asked == asked
