"""Who made these bytes: signed modules and signed batches of envelopes. The one user of Ed25519.

A signed module carries a custom section `signature` in front of all others, byte for byte as the
reference implementation of the WebAssembly tool conventions writes it for a whole file; that one
puts a length in front of the set and of each signature, against the written convention, and so do
we. Verification is stricter than the reference: the whole rest of the file is signed or nothing is,
there is one spelling, and delimiter sections and detached signatures do not exist.

A batch is an RFC 6962 tree over what one turn of the loop settles, with one signature for all.

Names of signers are the business of trust: here a signer is a public key. Secrets are held in
memory only, and no representation shows them.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import struct
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from executor.core import wasm
from executor.errors import ExecutorError
from executor.model import Digest
from executor.values import light_dataclass

SECTION: Final = "signature"
DELIMITER: Final = "signature_delimiter"
_OURS: Final = frozenset({SECTION, DELIMITER})
SIGNATURES_MAX: Final = 16
KEY_ID_BYTES: Final = 12
BATCH_MAX: Final = 64
CORE_ONLY: Final[tuple[wasm.Kind, ...]] = ("core",)

_KEY_BYTES: Final = 32
_HASH_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_KEY_ID_MAX: Final = 64  # of a foreign signature; it is only compared and shown
_PREFIX: Final = b"ed25519:"
_PUBLIC_TAG: Final = b"\x01"
_PAIR_TAG: Final = b"\x81"
_ED25519: Final = b"\x01"
_PREAMBLE: Final = b"\x01\x01\x01"  # version 1, content type module, hash SHA-256
_DOMAIN: Final = b"wasmsig" + _PREAMBLE
_SIZE: Final = struct.Struct(">I")
_IAT: Final = struct.Struct(">Iq")  # with its own size in front
_BATCH_DOMAIN: Final = b"executor/batch/v1\0"
_UNREADABLE: Final = (ValueError, TypeError, UnsupportedAlgorithm)

# For a point of low order anybody can make a signature that holds, and the library takes them all.
# Their y coordinates, orders 1, 2, 4, 8, 8; the top bit of a key, the sign of x, does not matter.
_FIELD: Final = 2**255 - 19
_ORDER_8: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_WEAK: Final = frozenset({0, 1, _FIELD - 1, _ORDER_8, _FIELD - _ORDER_8})
_SIGN_MASK: Final = 2**255 - 1


def _bad_key(detail: str) -> ExecutorError:
    return ExecutorError("config.invalid", detail)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key of 32 bytes, in the form of RFC 8032."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != _KEY_BYTES:
            raise _bad_key(f"a public key of {len(self.raw)} bytes, not {_KEY_BYTES}")

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read `ed25519:<base64>`, PEM, an OpenSSH line, or 01 ‖ 32 bytes; none of them weak.

        Errors  `config.invalid`.
        """
        key = cls(_public(text.encode(errors="replace") if isinstance(text, str) else text))
        if key.is_weak:
            raise _bad_key("a public key for which anybody can sign")
        return key

    @property
    def is_weak(self) -> bool:
        """Whether it needs no secret to sign for this key, or it is spelled in a second way."""
        y = int.from_bytes(self.raw, "little") & _SIGN_MASK
        return y >= _FIELD or y in _WEAK

    @property
    def key_id(self) -> bytes:
        """Twelve bytes that hint at the key; as the reference implementation derives them."""
        return hmac.digest(self.raw, b"key_id", "sha256")[:KEY_ID_BYTES]

    @property
    def text(self) -> str:
        """The form for configuration files."""
        return (_PREFIX + base64.b64encode(self.raw).rstrip(b"=")).decode()

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether this key signed `message`; never, if the key is weak."""
        if self.is_weak:
            return False
        try:
            _loaded(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True


# As the library has it; to make it takes a sixth of the time of a check.
_loaded: Final = functools.lru_cache(maxsize=256)(Ed25519PublicKey.from_public_bytes)


def _public(data: bytes) -> bytes:
    if len(data) == len(_PUBLIC_TAG) + _KEY_BYTES and data.startswith(_PUBLIC_TAG):
        return data[len(_PUBLIC_TAG) :]
    data = data.strip()
    if data.startswith(_PREFIX):
        return _unpadded(data.removeprefix(_PREFIX))
    try:
        pem = data.startswith(b"-----BEGIN ")
        load = serialization.load_pem_public_key if pem else serialization.load_ssh_public_key
        key = load(data)
    except _UNREADABLE as error:
        raise _bad_key("not a public key in a form that is read here") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _bad_key("a public key, but not of Ed25519")
    return key.public_bytes_raw()


def _unpadded(text: bytes) -> bytes:
    try:
        data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise _bad_key("a public key that is not base64") from error
    # The last character has spare bits; only one of its spellings is the key's name.
    if base64.b64encode(data).rstrip(b"=") != text:
        raise _bad_key("a public key in another spelling than base64 without padding")
    return data


class SecretKey:
    """An Ed25519 key pair; `seed` is the 32 bytes that RFC 8032 calls the private key."""

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = PublicKey(self._key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> Self:
        """Make a new key; the library takes the seed from the system."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @staticmethod
    def is_locked(data: bytes) -> bool:
        """Whether it is PEM that a passphrase opens. OpenSSH's own encryption is not read."""
        return data.lstrip().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")

    @classmethod
    def parse(cls, data: bytes, passphrase: bytes | None = None) -> Self:
        """Read PEM, OpenSSH, or 81 ‖ seed ‖ public; a `passphrase` is for PEM that is encrypted.

        Errors  `config.invalid`; the text shows nothing of `data`.
        """
        if len(data) == 1 + 2 * _KEY_BYTES and data.startswith(_PAIR_TAG):
            key = cls(data[1 : 1 + _KEY_BYTES])
            if key.public.raw != data[1 + _KEY_BYTES :]:
                raise _bad_key("a key pair whose halves do not belong together")
            return key
        data = data.strip()
        try:
            ssh = data.startswith(b"-----BEGIN OPENSSH ")
            load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
            found = load(data, password=passphrase if cls.is_locked(data) else None)
        except _UNREADABLE as error:
            raise _bad_key("not a secret key in a form that is read here, or encrypted") from error
        if not isinstance(found, Ed25519PrivateKey):
            raise _bad_key("a secret key, but not of Ed25519")
        return cls(found.private_bytes_raw())

    def pem(self, passphrase: bytes | None = None) -> bytes:
        """The form for files: PKCS #8 in PEM, encrypted if asked; the file's mode is 0600."""
        locked = serialization.BestAvailableEncryption(passphrase) if passphrase else None
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            locked or serialization.NoEncryption(),
        )

    def sign(self, message: bytes) -> bytes:
        """Sign `message`, 64 bytes; the same ones each time."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"SecretKey({self.public.key_id.hex()})"


@dataclass(frozen=True, slots=True)
class _Signature:
    key_id: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class _Signed:
    hash: bytes
    signatures: tuple[_Signature, ...]
    rest: int  # offset of what is signed


def _broken(detail: str, hint: str = "") -> ExecutorError:
    return ExecutorError("module.signature-invalid", detail, hint=hint)


class _Payload:
    """A reader of one level of the section that refuses what is short, padded or left over."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, size: int) -> bytes:
        taken = self._data[self._offset : self._offset + size]
        if len(taken) != size:
            self._fail()
        self._offset += size
        return taken

    def expect(self, expected: bytes, what: str) -> None:
        if self.take(len(expected)) != expected:
            raise _broken(f"{what} is not known here")

    def number(self) -> int:
        try:
            value, self._offset = wasm.read_uleb(self._data, self._offset, minimal=True)
        except ExecutorError as error:
            raise _broken("a number in its section is not in its shortest form") from error
        return value

    def block(self) -> _Payload:
        return _Payload(self.take(self.number()))

    def finish(self) -> None:
        if self._offset != len(self._data):
            self._fail()

    def _fail(self) -> NoReturn:
        raise _broken("a length in its section is wrong")


def _signature(block: _Payload) -> _Signature:
    size = block.number()
    if size > _KEY_ID_MAX:
        raise _broken(f"a key id of {size} bytes, at most {_KEY_ID_MAX}")
    key_id = block.take(size)
    block.expect(_ED25519, "its algorithm")
    if block.number() != _SIGNATURE_BYTES:
        raise _broken(f"a signature that is not {_SIGNATURE_BYTES} bytes long")
    signature = block.take(_SIGNATURE_BYTES)
    block.finish()
    return _Signature(key_id, signature)


def _signed(module: bytes, sections: tuple[wasm.Section, ...]) -> _Signed | None:
    """Find and read the section, without looking at the hash; None if there is none."""
    if any(section.name == DELIMITER for section in sections):
        raise _broken("the module is cut into parts that are signed on their own")
    found = [section for section in sections if section.name == SECTION]
    if not found:
        return None
    if len(found) > 1 or found[0] is not sections[0]:
        raise _broken("there must be one section of signatures, in front of all others")
    section = found[0]
    content = module[section.payload : section.end]
    if module[section.start : section.end] != wasm.custom(SECTION, content):
        raise _broken("the frame of its section is not in its shortest form")
    payload = _Payload(content)
    payload.expect(_PREAMBLE, "its version, content type or hash function")
    payload.expect(b"\x01", "a number of sets of hashes other than one")
    block = payload.block()
    payload.finish()
    block.expect(b"\x01", "a number of hashes other than one")
    hashed = block.take(_HASH_BYTES)
    count = block.number()
    if not 1 <= count <= SIGNATURES_MAX:
        raise _broken(f"{count} signatures, 1 to {SIGNATURES_MAX} are allowed")
    signatures = tuple(_signature(block.block()) for _ in range(count))
    block.finish()
    return _Signed(hashed, signatures, section.end)


def _encoded(hashed: bytes, signatures: Sequence[_Signature]) -> bytes:
    block = b"\x01" + hashed + wasm.uleb(len(signatures))
    for one in signatures:
        entry = wasm.uleb(len(one.key_id)) + one.key_id
        entry += _ED25519 + wasm.uleb(len(one.signature)) + one.signature
        block += wasm.uleb(len(entry)) + entry
    return wasm.custom(SECTION, _PREAMBLE + b"\x01" + wasm.uleb(len(block)) + block)


def _shortest(module: bytes, section: wasm.Section) -> bytes:
    content = module[section.payload : section.end]
    if section.id == wasm.CUSTOM:
        return wasm.custom(section.name, content)
    return bytes([section.id]) + wasm.uleb(len(content)) + content


def _rest(module: bytes, sections: Sequence[wasm.Section]) -> bytes:
    """What signatures cover: all but themselves and delimiters."""
    return b"".join(_shortest(module, each) for each in sections if each.name not in _OURS)


def sign_module(module: bytes, key: SecretKey, *, replace: bool = False) -> bytes:
    """Sign the whole of `module`, which is written with all section sizes in their shortest form.

    A signature is added to those that stand over the same bytes; signing twice with one key changes
    nothing. `replace` drops every signature and delimiter first.

    Errors  `module.signature-invalid` if the module's signatures are over other bytes, do not
            parse, or are 16 already; `module.invalid`, `module.too-complex` as `wasm.sections`,
            also for the file that would result.
    """
    found = wasm.sections(module)
    rest = _rest(module, found)
    hashed = hashlib.sha256(rest).digest()
    before = None if replace else _signed(module, found)
    if before is not None and before.hash != hashed:
        raise _broken(
            "the module was changed after it was signed",
            hint="sign it again from scratch, which drops the signatures it has",
        )
    signatures = before.signatures if before is not None else ()
    mine = _Signature(key.public.key_id, key.sign(_DOMAIN + hashed))
    if mine not in signatures:
        signatures = (*signatures, mine)
    if len(signatures) > SIGNATURES_MAX:
        raise _broken(f"the module has {SIGNATURES_MAX} signatures already")
    signed = module[: wasm.HEADER] + _encoded(hashed, signatures) + rest
    wasm.sections(signed)
    return signed


def verify_module(
    module: bytes, trusted: Sequence[PublicKey], *, kinds: Collection[wasm.Kind] = CORE_ONLY
) -> tuple[PublicKey, ...]:
    """Find the distinct keys of `trusted` that signed the whole of `module`, in that order.

    Nothing of the file counts before this: an empty answer means that nobody who is trusted signed
    it. No signature covers the magic, so a file of another kind than `kinds` is refused here;
    `manifest.read` compares it with what was signed.

    Errors  `module.unsigned`; `module.signature-invalid`, also if a signature that names a trusted
            key does not hold; `module.invalid`, `module.too-complex` as `wasm.sections`.
    """
    sections = wasm.sections(module)
    if (kind := wasm.kind(module)) not in kinds:
        raise ExecutorError("module.invalid", f"it is a {kind}, which is not allowed here")
    signed = _signed(module, sections)
    if signed is None:
        raise ExecutorError("module.unsigned")
    if hashlib.sha256(memoryview(module)[signed.rest :]).digest() != signed.hash:
        raise _broken("the module was changed after it was signed")
    message = _DOMAIN + signed.hash
    keys = {key: key.key_id for key in trusted}
    held: set[PublicKey] = set()
    for one in signed.signatures:
        # An empty key id names nobody: every key is tried, and none has to match.
        named = [key for key, key_id in keys.items() if one.key_id in {b"", key_id}]
        matched = [key for key in named if key.verify(one.signature, message)]
        if one.key_id and named and not matched:
            raise _broken("a signature of a trusted key does not hold")
        held.update(matched)
    return tuple(key for key in keys if key in held)


def signers(module: bytes) -> tuple[bytes, ...]:
    """List the key ids that the module claims, for display: nothing of this is verified.

    Errors  `module.signature-invalid` if they do not parse; `module.invalid`, `module.too-complex`.
    """
    signed = _signed(module, wasm.sections(module))
    return tuple(one.key_id for one in signed.signatures) if signed is not None else ()


def digest(module: bytes) -> Digest:
    """Name the file by its content, signatures included."""
    return Digest(f"sha256:{hashlib.sha256(module).hexdigest()}")


def content_digest(module: bytes) -> Digest:
    """Name what was built, whoever signed it: the file without signatures, sizes in shortest form.

    Unlike `digest` it stays the same while signatures are added, and it covers the magic.

    Errors  `module.invalid`, `module.too-complex` as `wasm.sections`.
    """
    return digest(module[: wasm.HEADER] + _rest(module, wasm.sections(module)))


@light_dataclass(frozen=True, slots=True)
class Proof:
    """That a leaf belongs to a signed batch."""

    count: int  # of leaves, 1 to 64
    index: int  # of this one, from 0
    path: bytes  # 32 bytes a step, from the leaf to the root
    signature: bytes


def leaf(typ: str, aud: str, id: str, by: str, iat: int, payload: bytes) -> bytes:
    """Hash one envelope; `by` is the key id of the signer, `iat` in ms."""
    kind, place, name, signer = typ.encode(), aud.encode(), id.encode(), by.encode()
    size = _SIZE.pack
    return hashlib.sha256(b"".join((
        b"\0", size(len(kind)), kind, size(len(place)), place, size(len(name)), name,
        size(len(signer)), signer, _IAT.pack(8, iat), size(len(payload)), payload,
    ))).digest()  # fmt: skip


def sign_batch(key: SecretKey, leaves: Sequence[bytes]) -> tuple[Proof, ...]:
    """Sign 1 to 64 leaves at once; one proof a leaf, in their order. Else `ValueError`."""
    if not 1 <= len(leaves) <= BATCH_MAX or any(len(one) != _HASH_BYTES for one in leaves):
        raise ValueError(f"not 1 to {BATCH_MAX} leaves of {_HASH_BYTES} bytes")
    root, paths = _tree(list(leaves))
    signature = key.sign(_batch(len(leaves), root))
    return tuple(Proof(len(leaves), index, path, signature) for index, path in enumerate(paths))


def verify_proof(key: PublicKey, leaf: bytes, proof: Proof) -> bool:
    """Whether `key` signed a batch that has `leaf` at the place that `proof` says."""
    root = _root(leaf, proof)
    return root is not None and key.verify(proof.signature, _batch(proof.count, root))


class BatchVerifier:
    """`verify_proof` that remembers the last `capacity` signatures that held, one per batch."""

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity = capacity
        self._held: OrderedDict[tuple[bytes, bytes, bytes], None] = OrderedDict()

    def verify(self, key: PublicKey, leaf: bytes, proof: Proof) -> bool:
        """As `verify_proof`; all of what is signed is part of what is remembered."""
        root = _root(leaf, proof)
        if root is None:
            return False
        message = _batch(proof.count, root)
        entry = (key.raw, message, proof.signature)
        if entry in self._held:
            self._held.move_to_end(entry)
            return True
        # A failure is not remembered: it would let a stranger push out what held.
        if not key.verify(proof.signature, message):
            return False
        self._held[entry] = None
        if len(self._held) > self._capacity:
            self._held.popitem(last=False)
        return True


def _batch(count: int, root: bytes) -> bytes:
    return _BATCH_DOMAIN + count.to_bytes(4, "big") + root


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _tree(leaves: list[bytes]) -> tuple[bytes, list[bytes]]:
    """Build root and paths; the left half is the largest power of two below the number of leaves.

    It recurses at most six levels deep, since a batch has at most 64 leaves.
    """
    if len(leaves) == 1:
        return leaves[0], [b""]
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    left, left_paths = _tree(leaves[:half])
    right, right_paths = _tree(leaves[half:])
    paths = [path + right for path in left_paths] + [path + left for path in right_paths]
    return _node(left, right), paths


def _root(leaf: bytes, proof: Proof) -> bytes | None:
    """Walk from `leaf` to the root as in RFC 9162, 2.1.3.2; None for a path of another shape."""
    if not 0 <= proof.index < proof.count <= BATCH_MAX or len(leaf) != _HASH_BYTES:
        return None
    place, last, root, offset = proof.index, proof.count - 1, leaf, 0
    while last:
        if place % 2 == 0 and place == last:  # a subtree without a right sibling rises as it is
            place, last = place // 2, last // 2
            continue
        step = proof.path[offset : offset + _HASH_BYTES]
        offset += _HASH_BYTES
        root = _node(step, root) if place % 2 else _node(root, step)
        place, last = place // 2, last // 2
    return root if offset == len(proof.path) else None
