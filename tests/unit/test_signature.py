"""Signed modules and signed batches: what holds, and each rule with a case that breaks only it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from executor.core import manifest, signature, wasm
from executor.core.manifest import Manifest
from executor.core.signature import Proof, PublicKey, SecretKey
from executor.errors import ExecutorError

VECTORS: Final = Path(__file__).parent / "vectors" / "wasmsig"
MAGIC: Final = b"\0asm\x01\0\0\0"
COMPONENT: Final = b"\0asm\x0d\0\x01\0"
DOMAIN: Final = b"wasmsig\x01\x01\x01"

A, B, C = (SecretKey(bytes([n]) * 32) for n in (1, 2, 3))


def vector(name: str) -> bytes:
    """Return one of the reference implementation's files."""
    return (VECTORS / name).read_bytes()


M, R, P3 = vector("m.wasm"), vector("r.wasm"), vector("p3.wasm")
K, K2 = PublicKey.parse(vector("k.pk")), PublicKey.parse(vector("k2.pk"))
REST: Final = M[8:]
HASH: Final = hashlib.sha256(REST).digest()


def refused(module: bytes, *trusted: PublicKey) -> str:
    """Return the code with which `module` is refused."""
    with pytest.raises(ExecutorError) as caught:
        signature.verify_module(module, trusted)
    return caught.value.code


def entry(
    key: SecretKey, *, key_id: bytes | None = None, algorithm: bytes = b"\x01", over: bytes = HASH
) -> bytes:
    """Build one signature as it stands in the section, without its length."""
    name = key.public.key_id if key_id is None else key_id
    signed = key.sign(DOMAIN + over)
    return wasm.uleb(len(name)) + name + algorithm + wasm.uleb(len(signed)) + signed


def block(*entries: bytes, hashes: Sequence[bytes] = (HASH,), tail: bytes = b"") -> bytes:
    """Build the set of hashes and signatures, without its length."""
    content = wasm.uleb(len(hashes)) + b"".join(hashes) + wasm.uleb(len(entries))
    return content + b"".join(wasm.uleb(len(one)) + one for one in entries) + tail


def payload(*blocks: bytes, preamble: bytes = b"\x01\x01\x01", tail: bytes = b"") -> bytes:
    """Build the content of the section."""
    sets = b"".join(wasm.uleb(len(one)) + one for one in blocks)
    return preamble + wasm.uleb(len(blocks)) + sets + tail


def module_of(content: bytes, rest: bytes = REST) -> bytes:
    """Build a module with `content` as its section of signatures."""
    return MAGIC + wasm.custom("signature", content) + rest


def test_the_bad_cases_are_built_from_a_good_one() -> None:
    """The builder of the cases below gives the signer's own bytes when nothing is broken."""
    assert module_of(payload(block(entry(A)))) == signature.sign_module(M, A)


# The reference implementation.


@pytest.mark.parametrize(
    ("module", "signers"), [("r.wasm", [K]), ("p3.wasm", [K, K2]), ("pms.wasm", [K])]
)
def test_the_reference_files_verify(module: str, signers: list[PublicKey]) -> None:
    """What the reference implementation signed is accepted, for exactly its signers."""
    data = vector(module)
    assert signature.verify_module(data, [K, K2]) == tuple(signers)
    assert signature.verify_module(data, [K2, K]) == tuple(signers[::-1])
    assert signature.verify_module(data, [A.public]) == signature.verify_module(data, []) == ()
    assert signature.signers(data) == tuple(key.key_id for key in signers)


def shape(module: bytes, keys: int) -> bytes:
    """Return `module` with the key ids and signatures of its first section blanked."""
    data = bytearray(module)
    signatures_of = len(module) - len(REST)
    for number in range(keys):
        end = signatures_of - number * (1 + 13 + 1 + 65)
        data[end - 64 : end] = bytes(64)
        data[end - 64 - 2 - 12 : end - 64 - 2] = bytes(12)
    return bytes(data)


def test_signing_gives_the_reference_bytes() -> None:
    """But for key id and signature, one and two signatures are laid out as in the reference."""
    once = signature.sign_module(M, A)
    twice = signature.sign_module(once, B)
    assert shape(once, 1) == shape(R, 1)
    assert shape(twice, 2) == shape(P3, 2)
    assert once.endswith(REST)
    assert signature.sign_module(R, A)[-len(REST) :] == REST


def padded(module: bytes) -> bytes:
    """Return `module` with each size and name length padded to five bytes, as linkers do."""
    out = module[:8]
    for section in wasm.sections(module):
        content = module[section.payload : section.end]
        if section.id == 0:
            content = pad(len(section.name)) + section.name.encode() + content
        out += bytes([section.id]) + pad(len(content)) + content
    return out


def pad(number: int) -> bytes:
    """Return a number below 128 as LEB128 of five bytes."""
    return bytes([number | 0x80, 0x80, 0x80, 0x80, 0])


def test_signing_shortens_sizes() -> None:
    """A padded module signs to the very bytes of the plain one, as the reference does it."""
    assert vector("pms.wasm") == R
    assert padded(M) != M
    assert signature.sign_module(padded(M), A) == signature.sign_module(M, A)


# Modules.


def test_each_signer_is_found_once() -> None:
    """The answer is a set of trusted keys in the order of trust, never a count of signatures."""
    module = module_of(payload(block(entry(A), entry(B), entry(A), entry(C))))
    assert signature.verify_module(module, [C.public, A.public, A.public]) == (C.public, A.public)


def test_signing_twice_with_one_key_changes_nothing() -> None:
    """A second run of a release script leaves the file as it is."""
    once = signature.sign_module(M, A)
    assert signature.sign_module(once, A) == once


@pytest.mark.covers("module.unsigned")
def test_a_module_without_signature_is_unsigned() -> None:
    """No signature at all is told apart from one that does not hold."""
    assert refused(M, K) == "module.unsigned"
    assert signature.signers(M) == ()


@pytest.mark.covers("module.signature-invalid")
def test_a_changed_module_does_not_verify() -> None:
    """What follows the signatures is the signed bytes or nothing is."""
    assert refused(R[:-1] + b"!", K) == "module.signature-invalid"


@contextmanager
def suppress_module_codes() -> Iterator[None]:
    """Pass over `module.*` and over nothing else."""
    try:
        yield
    except ExecutorError as error:
        if error.row.stage != "module":
            raise


def test_every_changed_byte_of_the_reference_file_is_noticed() -> None:
    """With any one byte changed, the file is refused or says nothing of the trusted key."""
    for index in range(len(R)):
        for flip in (0x01, 0x80):
            changed = bytearray(R)
            changed[index] ^= flip
            held: tuple[PublicKey, ...] = ()
            with suppress_module_codes():
                held = signature.verify_module(bytes(changed), [K])
            assert held == (), f"byte {index} ^ {flip:#x}"


def test_no_part_of_the_reference_file_verifies() -> None:
    """A file cut short anywhere is refused, also between two sections."""
    for size in range(len(R)):
        assert refused(R[:size], K) in {
            "module.invalid", "module.unsigned", "module.signature-invalid",
        }  # fmt: skip


@pytest.mark.parametrize(
    "tail", [b"\0", b"\x01\0", wasm.custom("name", b""), wasm.custom("", b"\0" * 40), REST]
)
def test_nothing_is_added_behind_the_signed_bytes(tail: bytes) -> None:
    """A file made longer is refused, also by sections that change no behaviour."""
    assert refused(R + tail, K) in {"module.invalid", "module.signature-invalid"}


DELIMITER: Final = wasm.custom("signature_delimiter", bytes(16))
DELIMITED: Final = hashlib.sha256(REST + DELIMITER).digest()
CUT: Final = entry(A, over=DELIMITED)
LONG_ID: Final = entry(A, key_id=bytes(65))
SHORT: Final = wasm.uleb(12) + A.public.key_id + b"\x01" + wasm.uleb(63) + bytes(63)
SECTION: Final = wasm.custom("signature", payload(block(entry(A))))
AROUND: Final = hashlib.sha256(SECTION + REST).digest()
WIDE_COUNT: Final = block(entry(A)).replace(HASH + b"\x01", HASH + b"\x81\x00")

BAD: Final = {
    "rule 1: not the first section": MAGIC + wasm.custom("name", b"") + SECTION + REST,
    "rule 1: behind the signed bytes": MAGIC + REST + SECTION,
    "rule 1: two sections": module_of(
        payload(block(entry(A, over=AROUND), hashes=[AROUND])), SECTION + REST
    ),
    "rule 1: signed up to a delimiter": module_of(
        payload(block(CUT, hashes=[DELIMITED])), REST + DELIMITER
    ),
    "rule 1: a delimiter alone": M + DELIMITER,
    "rule 2: the hash of other bytes": module_of(
        payload(block(entry(A, over=bytes(32)), hashes=[bytes(32)]))
    ),
    "rule 2: two hashes": module_of(payload(block(entry(A), hashes=[HASH, HASH]))),
    "rule 2: no hash": module_of(payload(block(entry(A), hashes=[]))),
    "rule 2: two sets": module_of(payload(block(entry(A)), block(entry(A)))),
    "rule 2: no set": module_of(payload()),
    "rule 2: a set without signatures": module_of(payload(block())),
    "rule 3: a padded count": module_of(payload(WIDE_COUNT)),
    "rule 3: a padded size of the section": (
        MAGIC + b"\0" + bytes([SECTION[1], SECTION[2] | 0x80, 0]) + SECTION[3:] + REST
    ),
    "rule 3: a padded length of the name": (
        MAGIC + b"\0\x82\x01\x89\x00signature" + payload(block(entry(A))) + REST
    ),
    "rule 3: a number that overflows": module_of(
        b"\x01\x01\x01\x01" + b"\xff\xff\xff\xff\x7f" + block(entry(A))
    ),
    "rule 3: bytes behind the set": module_of(payload(block(entry(A)), tail=b"\0")),
    "rule 3: bytes behind the signatures": module_of(payload(block(entry(A), tail=b"\0"))),
    "rule 3: bytes behind a signature": module_of(payload(block(entry(A) + b"\0"))),
    "rule 3: a length past the end": module_of(
        b"\x01\x01\x01\x01" + wasm.uleb(len(block(entry(A))) + 1) + block(entry(A))
    ),
    "rule 3: 17 signatures": module_of(payload(block(*[entry(A)] * 17))),
    "rule 4: another algorithm": module_of(payload(block(entry(A, algorithm=b"\x02")))),
    "rule 4: 63 bytes": module_of(payload(block(SHORT))),
    "rule 4: a wrong signature of a trusted key": module_of(
        payload(block(entry(B, key_id=A.public.key_id), entry(A)))
    ),
    "rule 4: a key id without bound": module_of(payload(block(entry(A), LONG_ID))),
    "another version": module_of(payload(block(entry(A)), preamble=b"\x02\x01\x01")),
    "another content type": module_of(payload(block(entry(A)), preamble=b"\x01\x02\x01")),
    "another hash function": module_of(payload(block(entry(A)), preamble=b"\x01\x01\x02")),
    "an empty section": module_of(b""),
}  # fmt: skip


@pytest.mark.covers("module.signature-invalid")
@pytest.mark.parametrize("module", BAD.values(), ids=BAD.keys())
def test_the_strict_rules(module: bytes) -> None:
    """A file is refused that breaks one rule and would verify in every other respect."""
    assert refused(module, A.public) == "module.signature-invalid"


def test_rule_3_sections_are_bounded() -> None:
    """The bound on sections includes the one of signatures, for signing too."""
    most = MAGIC + b"\x0c\0" * 4095
    assert signature.verify_module(signature.sign_module(most, A), [A.public]) == (A.public,)
    with pytest.raises(ExecutorError, match=r"module\.invalid"):
        signature.sign_module(most + b"\x0c\0", A)


def test_rule_4_unknown_and_empty_key_ids() -> None:
    """An unknown key id is skipped; an empty one tries each trusted key and need not match."""
    module = module_of(payload(block(entry(B), entry(C, key_id=b""))))
    longest = module_of(payload(block(entry(B, key_id=bytes(64)), entry(A))))
    assert signature.verify_module(module, [A.public, C.public]) == (C.public,)
    assert signature.verify_module(module, [A.public]) == ()
    assert signature.verify_module(longest, [A.public, B.public]) == (A.public,)
    assert signature.signers(module) == (B.public.key_id, b"")


@pytest.mark.covers("module.invalid")
def test_rule_6_a_relabelled_module_is_refused() -> None:
    """The magic lies outside the hash: its kind must be allowed, and be the manifest's."""
    signed = signature.sign_module(manifest.append(M, Manifest(task="t", version="1")), A)
    relabelled = COMPONENT + signed[8:]
    assert refused(relabelled, A.public) == "module.invalid"
    kinds: tuple[wasm.Kind, ...] = ("core", "component")
    assert signature.verify_module(relabelled, [A.public], kinds=kinds) == (A.public,)
    with pytest.raises(ExecutorError, match=r"module\.manifest-invalid"):
        manifest.read(relabelled)


@pytest.mark.covers("module.too-complex")
def test_rule_7_a_large_file_is_not_even_framed() -> None:
    """The size of a file is looked at before anything else, and what is signed stays below it."""
    assert refused(bytes(wasm.MODULE_MAX + 1), K) == "module.too-complex"
    head = MAGIC + b"\x0b" + wasm.uleb(wasm.MODULE_MAX - 13)
    with pytest.raises(ExecutorError, match=r"module\.too-complex"):
        signature.sign_module(head + bytes(wasm.MODULE_MAX - len(head)), A)


def test_another_file_under_old_signatures_is_signed_only_when_asked() -> None:
    """A stale signature is not silently thrown away; `replace` starts from scratch."""
    changed = R + wasm.custom("more", b"")
    with pytest.raises(ExecutorError) as caught:
        signature.sign_module(changed, A)
    assert caught.value.code == "module.signature-invalid"
    assert "from scratch" in caught.value.hint
    again = signature.sign_module(changed, A, replace=True)
    assert again == signature.sign_module(M + wasm.custom("more", b""), A)
    assert signature.signers(signature.sign_module(R, A, replace=True)) == (A.public.key_id,)


def test_replace_drops_whatever_does_not_parse() -> None:
    """Signatures of any form and delimiters anywhere are gone from the new file."""
    broken = MAGIC + wasm.custom("signature", b"?") + REST + DELIMITER + SECTION
    assert signature.sign_module(broken, A, replace=True) == signature.sign_module(M, A)


def test_a_seventeenth_signature_is_refused() -> None:
    """Nothing is signed that would not verify."""
    module = M
    for number in range(16):
        module = signature.sign_module(module, SecretKey(bytes([number]) * 32))
    assert len(signature.signers(module)) == 16
    with pytest.raises(ExecutorError, match="16 signatures already"):
        signature.sign_module(module, SecretKey(bytes([99]) * 32))


def test_the_digest_names_the_whole_file() -> None:
    """The name of a module covers its signatures too."""
    assert signature.digest(b"") == f"sha256:{hashlib.sha256().hexdigest()}"
    assert signature.digest(R) != signature.digest(P3)


# Keys.


def test_public_keys_are_read_in_every_form() -> None:
    """A key is the same key in each of the forms that tools write."""
    key = Ed25519PublicKey.from_public_bytes(K.raw)
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    ssh = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    assert K.text == "ed25519:NnL+cjYiw1CPawf+MoPwQuUfvkboUVBindbleRAjYdI"
    forms = (K.text, K.text.encode() + b"\n", b"\x01" + K.raw, pem, ssh + b" somebody\n")
    assert {PublicKey.parse(form) for form in forms} == {K}
    assert PublicKey.parse(pem.decode()) == K


def test_key_ids_are_those_of_the_reference() -> None:
    """The key id is the one that the reference writes beside its signatures."""
    assert K.key_id.hex() == "afaec8ea5ff25f7f7e47fff0"
    assert K2.key_id.hex() == "939cfda1b237b1c999f5d96f"


def refused_key(form: bytes | str) -> str:
    """Return the message with which both parsers refuse `form`."""
    data = form.encode(errors="replace") if isinstance(form, str) else form
    for parse in (lambda: PublicKey.parse(form), lambda: SecretKey.parse(data)):
        with pytest.raises(ExecutorError) as caught:
            parse()
        assert caught.value.code == "config.invalid"
    return str(caught.value)


@pytest.mark.parametrize(
    "form",
    [
        "",
        "K",
        "ed25519:",
        "\ud800",
        K.text[:-1],
        K.text + "=",
        K.text[:-1] + "J",
        K.text.replace("+", "-"),
        "rsa:" + "A" * 43,
        K.raw,
        b"\x02" + K.raw,
        b"\x01" + bytes(33),
        b"\x81" + bytes(31),
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
        b"ssh-ed25519 AAAA",
    ],
)
def test_what_is_no_key_is_refused(form: bytes | str) -> None:
    """Nothing is guessed: other spellings and other things are not keys."""
    assert refused_key(form)


def test_keys_of_other_kinds_are_refused() -> None:
    """A key that could be read but not used here is refused when it is read."""
    other = ec.generate_private_key(ec.SECP256R1())
    public = other.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    secret = other.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with pytest.raises(ExecutorError, match="a public key, but not of Ed25519"):
        PublicKey.parse(public)
    with pytest.raises(ExecutorError, match="a secret key, but not of Ed25519"):
        SecretKey.parse(secret)


def test_a_public_key_has_32_bytes() -> None:
    """No key of another length comes into being."""
    with pytest.raises(ExecutorError, match="of 31 bytes"):
        PublicKey(bytes(31))


FIELD: Final = 2**255 - 19
ORDER_8: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
WEAK: Final = (0, 1, FIELD - 1, FIELD, FIELD + 1, 2**255 - 1, ORDER_8, FIELD - ORDER_8)


@pytest.mark.parametrize("y", WEAK)
@pytest.mark.parametrize("sign", [0, 1])
def test_weak_keys_never_verify(y: int, sign: int) -> None:
    """A key for which anybody can sign is not read, and believed in no case."""
    raw = (y | sign << 255).to_bytes(32, "little")
    with pytest.raises(ExecutorError, match="anybody can sign"):
        PublicKey.parse(b"\x01" + raw)
    assert PublicKey(raw).is_weak
    assert not PublicKey(raw).verify(FORGED, b"anything")


# R is the base point and s is 1: s·B = R + k·A for every k, if A is the neutral element.
FORGED: Final = b"\x58" + b"\x66" * 31 + (1).to_bytes(32, "little")


def test_the_library_believes_a_weak_key() -> None:
    """The check of weak keys is ours because the library has none; else it could go."""
    Ed25519PublicKey.from_public_bytes((1).to_bytes(32, "little")).verify(FORGED, b"anything")


def secret_forms(key: SecretKey, seed: bytes) -> list[bytes]:
    """Return `key` in each form that is read."""
    private = Ed25519PrivateKey.from_private_bytes(seed)
    plain = serialization.NoEncryption()
    openssh = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, plain
    )
    return [key.pem(), b"\n" + key.pem(), openssh, b"\x81" + seed + key.public.raw]


def test_secret_keys_are_read_in_every_form() -> None:
    """A secret key is the same key in each of the forms that tools write."""
    for form in secret_forms(A, bytes([1]) * 32):
        again = SecretKey.parse(form)
        assert again.public == A.public
        assert again.sign(b"x") == A.sign(b"x")


def test_a_pair_must_belong_together() -> None:
    """A pair with another's public half would sign under a name that is not its own."""
    with pytest.raises(ExecutorError, match="do not belong together"):
        SecretKey.parse(b"\x81" + bytes([1]) * 32 + B.public.raw)


def encrypted() -> list[bytes]:
    """Return a key of each kind that asks for a passphrase; of OpenSSH's only what is read."""
    locked = Ed25519PrivateKey.from_private_bytes(bytes(32)).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"word"),
    )
    public = field(b"ssh-ed25519") + field(A.public.raw)
    options = field(field(bytes(16)) + (16).to_bytes(4, "big"))
    blob = b"openssh-key-v1\0" + field(b"aes256-ctr") + field(b"bcrypt") + options
    blob += (1).to_bytes(4, "big") + field(public) + field(bytes(144))
    text = base64.encodebytes(blob)
    edge = b"OPENSSH PRIVATE KEY-----\n"
    return [locked, b"-----BEGIN " + edge + text + b"-----END " + edge]


def field(data: bytes) -> bytes:
    """Return `data` with its length in front."""
    return len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize("form", encrypted(), ids=["PKCS 8", "OpenSSH"])
def test_an_encrypted_key_is_refused(form: bytes) -> None:
    """There is nobody to ask for a passphrase."""
    with pytest.raises(ExecutorError, match="or encrypted") as caught:
        SecretKey.parse(form)
    assert "password" in str(caught.value.__cause__).lower()


def test_an_encrypted_key_opens_with_its_passphrase() -> None:
    """PEM that is encrypted is the same key; another passphrase opens nothing."""
    form = A.pem(b"word")
    assert SecretKey.is_locked(form)
    assert not SecretKey.is_locked(A.pem())
    assert SecretKey.parse(form, b"word").public == A.public
    assert SecretKey.parse(A.pem(), b"word").public == A.public  # which it did not need
    with pytest.raises(ExecutorError, match="or encrypted"):
        SecretKey.parse(form, b"other")


def test_new_keys_differ_and_verify() -> None:
    """Each generated key is its own and signs what its public half verifies."""
    one, two = SecretKey.generate(), SecretKey.generate()
    assert one.public != two.public
    assert one.public.verify(one.sign(b"x"), b"x")
    assert not two.public.verify(one.sign(b"x"), b"x")


def test_no_representation_shows_the_seed() -> None:
    """A secret key in a log line or traceback is a key id."""
    seed = bytes(range(32, 64))
    key = SecretKey(seed)
    assert repr(key) == str(key) == f"SecretKey({key.public.key_id.hex()})"
    assert not hasattr(key, "__dict__")


# Batches.


def leaves_of(count: int) -> list[bytes]:
    """Return `count` different leaves."""
    return [hashlib.sha256(bytes([number])).digest() for number in range(count)]


def test_a_leaf_covers_each_field_with_its_length() -> None:
    """The hash is that of a known string, and moving a byte to a neighbour changes it."""
    fields = (b"result", b"prod/result.a.b.c", b"c", b"0a", b"\xff" * 8, b"\0\1")
    text = b"\0" + b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    leaf = signature.leaf("result", "prod/result.a.b.c", "c", "0a", -1, b"\0\1")
    assert leaf == hashlib.sha256(text).digest()
    moved = signature.leaf("result", "prod/result.a.b.", "cc", "0a", -1, b"\0\1")
    assert moved != leaf


# The roots of the first n of eight entries, from the test data of Certificate Transparency.
ENTRIES: Final = (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
)  # fmt: skip
ROOTS: Final = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


@pytest.mark.parametrize(("count", "root"), ROOTS.items())
def test_roots_are_those_of_rfc_6962(count: int, root: str) -> None:
    """The tree is the one of the standard, whose roots others have published."""
    hashed = [hashlib.sha256(b"\0" + bytes.fromhex(text)).digest() for text in ENTRIES[:count]]
    (proof, *_) = signature.sign_batch(A, hashed)
    message = b"executor/batch/v1\0" + count.to_bytes(4, "big") + bytes.fromhex(root)
    assert A.public.verify(proof.signature, message)
    assert signature.verify_proof(A.public, hashed[0], proof)


def test_a_batch_signature_is_exact() -> None:
    """A changed, cut or foreign signature proves nothing."""
    (leaf,) = leaves_of(1)
    (proof,) = signature.sign_batch(A, [leaf])
    for other in (b"", proof.signature[:-1], bytes(64), A.sign(leaf), proof.signature + b"\0"):
        assert not signature.verify_proof(A.public, leaf, replace(proof, signature=other))


def test_an_inner_node_is_no_leaf() -> None:
    """Two leaves cannot be passed off as one: a batch signs how many it has."""
    leaves = leaves_of(2)
    (proof, _) = signature.sign_batch(A, leaves)
    node = hashlib.sha256(b"\1" + leaves[0] + leaves[1]).digest()
    assert not signature.verify_proof(A.public, node, Proof(1, 0, b"", proof.signature))
