"""Provenance: who built a module, from what, as an in-toto statement in a DSSE envelope.

The statement is SLSA provenance v1; one Ed25519 signature of the builder's covers it. It names the
module by its content digest (`signature.content_digest`): the file as it was built, before anybody
signed it, so that the same statement holds however many signatures are added later, and whoever
has the signed file can still compute it. Refused: the digest of the signed file, which does not
exist yet when a builder that is no publisher makes the statement.

The envelope has one spelling (`strict.dump`), and nothing of it is parsed as a statement before
its signature held. It holds no time: the same sources and the same builder give the same bytes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from executor.core import strict
from executor.core.access import Party
from executor.core.signature import PublicKey, SecretKey
from executor.errors import ExecutorError
from executor.model import Digest
from executor.sizes import KIB

STATEMENT_MAX: Final = 256 * KIB  # about 1 500 sources
SUFFIX: Final = ".provenance.json"  # behind a module's file name
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:wasm-task-executor:build:1"

_BUILDER: Final = "urn:wasm-task-executor:builder:"
_SHA256: Final = "sha256"
_ENVELOPE_DEPTH: Final = 3
_STATEMENT_DEPTH: Final = 16


@dataclass(frozen=True, slots=True)
class Build:
    """What a build driver knows of one build."""

    digest: Digest  # of the content
    task: str
    version: str
    language: str
    sources: tuple[tuple[str, str], ...]  # name in the build's folder, SHA-256 in hex
    tools: tuple[tuple[str, str], ...]  # Python package, version


@dataclass(frozen=True, slots=True)
class Statement:
    """What an accepted builder says; `sources` are as in `Build`."""

    builder: Party
    sources: tuple[tuple[str, str], ...]
    tools: tuple[str, ...]


def _invalid(detail: str) -> ExecutorError:
    return ExecutorError("module.provenance-invalid", detail)


def object_name(digest: str) -> str:
    """Where the statement of a module lies in the store, beside the module."""
    return f"{digest}.provenance"


def builder_id(key: PublicKey) -> str:
    """The builder that holds a key, as statements name it."""
    return f"{_BUILDER}{key.key_id.hex()}"


def pae(payload: bytes) -> bytes:
    """The bytes that DSSE signs for a payload of our type."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign(build: Build, key: SecretKey) -> bytes:
    """The envelope with the builder's statement.

    Errors  `config.invalid` if it would be too large to be read.
    """
    payload = strict.dump(_statement(build, key.public))
    data = _envelope(payload, key.public.key_id.hex(), key.sign(pae(payload)))
    if len(data) > STATEMENT_MAX:
        raise ExecutorError(
            "config.invalid", f"{len(build.sources)} sources make a statement of {len(data)} bytes",
            hint=f"at most {STATEMENT_MAX}: keep what is no source out of the task's folder",
        )  # fmt: skip
    return data


def _envelope(payload: bytes, key_id: str, signature: bytes) -> bytes:
    return strict.dump({
        "payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key_id, "sig": base64.b64encode(signature).decode()}],
    })  # fmt: skip


def _statement(build: Build, key: PublicKey) -> Mapping[str, object]:
    dependencies: list[dict[str, object]] = [
        {"name": name, "digest": {_SHA256: sha256}} for name, sha256 in build.sources
    ]
    dependencies += [
        {"name": name, "uri": f"pkg:pypi/{name}@{version}"} for name, version in build.tools
    ]
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": {
            "task": build.task, "version": build.version, "language": build.language,
        },
        # What stands in for the time in everything that is built.
        "internalParameters": {"SOURCE_DATE_EPOCH": 0},
        "resolvedDependencies": dependencies,
    }  # fmt: skip
    subject = {
        "name": f"{build.task}.wasm",
        "digest": {_SHA256: build.digest.removeprefix(f"{_SHA256}:")},
    }
    return {
        "_type": STATEMENT_TYPE, "subject": [subject], "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": definition, "runDetails": {"builder": {"id": builder_id(key)}},
        },
    }  # fmt: skip


def verify(data: bytes, digest: Digest, builders: Sequence[Party]) -> Statement:
    """What one of `builders` says of the module with this content digest.

    Nothing of a statement counts before its signature held. Two [[builder]] of one key are one.

    Errors  `module.provenance-invalid`.
    """
    if len(data) > STATEMENT_MAX:
        raise _invalid(f"{len(data)} bytes, at most {STATEMENT_MAX}")
    payload, key_id, signature = _opened(data)
    builder = next((b for b in builders if b.key.key_id.hex() == key_id), None)
    if builder is None:
        raise _invalid(f"signed by `{strict.shown(key_id)}`, which is no builder accepted here")
    if not builder.key.verify(signature, pae(payload)):
        raise _invalid(f"the signature of `{builder.name}` does not hold")
    statement = _object(_load(payload, _STATEMENT_DEPTH), "the statement")
    if (statement.get("_type"), statement.get("predicateType")) != (
        STATEMENT_TYPE, PREDICATE_TYPE,
    ):  # fmt: skip
        raise _invalid("it is no statement of SLSA provenance v1")
    named = _digests(statement.get("subject"), "subject")
    if digest.removeprefix(f"{_SHA256}:") not in (sha256 for _, sha256 in named):
        raise _invalid("it is about another module")
    predicate = _object(statement.get("predicate"), "predicate")
    run = _object(predicate.get("runDetails"), "runDetails")
    if _object(run.get("builder"), "builder").get("id") != builder_id(builder.key):
        raise _invalid("it names another builder than the one that signed it")
    definition = _object(predicate.get("buildDefinition"), "buildDefinition")
    dependencies = _list(definition.get("resolvedDependencies"), "resolvedDependencies")
    tools = [_object(each, "a dependency").get("uri") for each in dependencies]
    return Statement(
        builder, tuple(_digests(dependencies, "resolvedDependencies")),
        tuple(uri for uri in tools if isinstance(uri, str)),
    )  # fmt: skip


def _opened(data: bytes) -> tuple[bytes, str, bytes]:
    """Payload, key id and signature of an envelope, which has exactly one spelling."""
    envelope = _object(_load(data, _ENVELOPE_DEPTH), "the envelope")
    signatures = _list(envelope.get("signatures"), "signatures")
    if len(signatures) != 1:
        raise _invalid(f"{len(signatures)} signatures, exactly 1 is read here")
    entry = _object(signatures[0], "a signature")
    payload, signature = _bytes(envelope.get("payload")), _bytes(entry.get("sig"))
    key_id = entry.get("keyid")
    if not isinstance(key_id, str) or _envelope(payload, key_id, signature) != data:
        raise _invalid("not an envelope in the one spelling that is read here")
    return payload, key_id, signature


def _load(data: bytes, depth_max: int) -> object:
    try:
        return strict.load(data, depth_max=depth_max)
    except strict.NotStrictError as error:
        raise _invalid(error.detail) from error


def _object(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _invalid(f"`{what}` is not an object")
    return value


def _list(value: object, what: str) -> Sequence[object]:
    if not isinstance(value, list):
        raise _invalid(f"`{what}` is not a list")
    return value


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "?", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid("not base64") from error


def _digests(value: object, what: str) -> Iterable[tuple[str, str]]:
    """Name and SHA-256 of each entry that has both."""
    found = []
    for each in _list(value, what):
        entry = _object(each, what)
        digest = entry.get("digest", {})
        sha256 = _object(digest, "digest").get(_SHA256)
        name = entry.get("name", "")
        if isinstance(sha256, str) and isinstance(name, str):
            found.append((name, sha256))
    return found
