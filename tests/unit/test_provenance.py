"""Statements of who built a module: what holds, and each way in which one does not."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from executor.core import provenance, signature
from executor.core.access import Party
from executor.core.provenance import Build
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import Digest

FARM_KEY, OTHER_KEY = (SecretKey(bytes([n]) * 32) for n in (1, 2))
FARM, OTHER = Party("farm", FARM_KEY.public), Party("other", OTHER_KEY.public)
MODULE: Final = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0"
DIGEST: Final = signature.content_digest(MODULE)
BUILD: Final = Build(
    DIGEST, "hello", "1.0.0", "c", (("src/hello.c", "ab" * 32), ("sdk/executor_task.h", "cd" * 32)),
    (("ziglang", "0.17.1"),),
)  # fmt: skip
GOOD: Final = provenance.sign(BUILD, FARM_KEY)


def refused(data: bytes, *, digest: Digest = DIGEST, builders: tuple[Party, ...] = (FARM,)) -> str:
    """Why a statement does not hold."""
    with pytest.raises(ExecutorError) as caught:
        provenance.verify(data, digest, builders)
    assert caught.value.code == "module.provenance-invalid"
    return caught.value.detail


def signed(change: Callable[[dict[str, Any]], Any], key: SecretKey = FARM_KEY) -> bytes:
    """A statement that was changed before it was signed."""
    statement = json.loads(base64.b64decode(json.loads(GOOD)["payload"]))
    change(statement)
    return sealed(json.dumps(statement).encode(), key)


def sealed(payload: bytes, key: SecretKey = FARM_KEY) -> bytes:
    """An envelope over any payload, with a signature that holds."""
    made = key.sign(provenance.pae(payload))
    return provenance._envelope(payload, key.public.key_id.hex(), made)


def test_a_statement_holds() -> None:
    """An accepted builder's word about this module is believed, with what it was made from."""
    said = provenance.verify(GOOD, DIGEST, [OTHER, FARM])
    assert said.builder == FARM
    assert said.sources == BUILD.sources
    assert said.tools == ("pkg:pypi/ziglang@0.17.1",)


def test_the_form_is_that_of_the_specifications() -> None:
    """DSSE around an in-toto statement v1 with SLSA provenance v1, as other tools read it."""
    envelope = json.loads(GOOD)
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"] == [
        {"name": "hello.wasm", "digest": {"sha256": DIGEST.removeprefix("sha256:")}}
    ]
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["task"] == "hello"
    assert {"name": "ziglang", "uri": "pkg:pypi/ziglang@0.17.1"} in definition[
        "resolvedDependencies"
    ]
    assert statement["predicate"]["runDetails"]["builder"]["id"].endswith(
        FARM_KEY.public.key_id.hex()
    )


def test_what_is_signed_is_the_encoding_of_dsse() -> None:
    """The example of the specification, with our payload's type in its place."""
    assert provenance.pae(b"hello world") == (
        b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"
    )


def test_a_statement_lies_beside_its_module() -> None:
    """In the store, under the module's own digest."""
    assert provenance.object_name("sha256:ab") == "sha256:ab.provenance"


def test_equal_builds_have_equal_statements() -> None:
    """There is no time in it: the same builder says the same bytes of the same sources."""
    assert provenance.sign(BUILD, FARM_KEY) == GOOD
    assert provenance.sign(replace(BUILD, version="1.0.1"), FARM_KEY) != GOOD


def test_signing_the_module_leaves_the_statement_alone() -> None:
    """A statement about what was built holds for the file that publishers signed later."""
    module = signature.sign_module(signature.sign_module(MODULE, FARM_KEY), OTHER_KEY)
    assert provenance.verify(GOOD, signature.content_digest(module), [FARM]).builder == FARM


@pytest.mark.covers("module.provenance-invalid")
def test_another_builder_is_refused() -> None:
    """A good statement by somebody who is not accepted is no statement."""
    assert "no builder accepted here" in refused(GOOD, builders=(OTHER,))
    assert "no builder accepted here" in refused(GOOD, builders=())


def test_another_digest_is_refused() -> None:
    """A good statement about another module is no statement about this one."""
    other = signature.content_digest(MODULE + b"\x0c\x01\0")
    assert refused(GOOD, digest=other) == "it is about another module"


def test_every_changed_byte_is_refused() -> None:
    """An envelope has one spelling, and each of its bytes counts."""
    for index in range(len(GOOD)):
        for value in (GOOD[index] ^ 1, GOOD[index] ^ 0x20, GOOD[index] ^ 0x80, 0x20):
            if value != GOOD[index]:
                refused(GOOD[:index] + bytes([value]) + GOOD[index + 1 :])


def test_no_part_of_it_is_enough() -> None:
    """Cut short or made longer it is refused."""
    for size in range(0, len(GOOD), 7):
        refused(GOOD[:size])
    for tail in (b" ", b"\n", b"{}", GOOD):
        refused(GOOD + tail)


def test_a_signature_over_the_payload_alone_is_refused() -> None:
    """The payload's type is signed too: what was signed for another purpose is not taken."""
    payload = base64.b64decode(json.loads(GOOD)["payload"])
    key_id = FARM_KEY.public.key_id.hex()
    for signed_bytes in (payload, b"DSSEv1 0  %d %s" % (len(payload), payload)):
        made = provenance._envelope(payload, key_id, FARM_KEY.sign(signed_bytes))
        assert "does not hold" in refused(made)
    stolen = provenance._envelope(payload, key_id, OTHER_KEY.sign(provenance.pae(payload)))
    assert "does not hold" in refused(stolen, builders=(FARM, OTHER))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "SLSA provenance v1"),
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v0.2"), "SLSA"),
        (lambda s: s.update(subject=[]), "another module"),
        (lambda s: s.update(subject={}), "not a list"),
        (lambda s: s.update(subject=[7]), "not an object"),
        (lambda s: s["subject"][0].update(digest={"sha512": "00"}), "another module"),
        (lambda s: s["subject"][0].update(digest={"sha256": 7}), "another module"),
        (lambda s: s["subject"][0].update(digest=7), "not an object"),
        (lambda s: s["subject"][0].update(name=7), "another module"),
        (lambda s: s.pop("predicate"), "not an object"),
        (lambda s: s["predicate"].pop("runDetails"), "not an object"),
        (lambda s: s["predicate"]["runDetails"]["builder"].pop("id"), "another builder"),
        (lambda s: s["predicate"]["runDetails"]["builder"].update(id=7), "another builder"),
        (lambda s: s["predicate"].pop("buildDefinition"), "not an object"),
        (lambda s: s["predicate"]["buildDefinition"].pop("resolvedDependencies"), "not a list"),
    ],
)  # fmt: skip
def test_a_signed_statement_of_another_form_is_refused(
    change: Callable[[dict[str, Any]], Any], word: str
) -> None:
    """An accepted builder's signature does not make a statement of what is none."""
    assert word in refused(signed(change))


def test_a_statement_in_another_builders_name_is_refused() -> None:
    """The builder that signs is the one that the statement names, both being accepted."""
    made = signed(lambda _: None, OTHER_KEY)
    assert "another builder" in refused(made, builders=(FARM, OTHER))


@pytest.mark.parametrize(
    ("envelope", "word"),
    [
        (b"", "not JSON"), (b"[]", "not an object"), (b"\xff", "UTF-8"), (b"[[[[", "nested"),
        (b'{"signatures":7}', "not a list"), (b'{"signatures":[]}', "0 signatures"),
        (b'{"signatures":[{},{}]}', "2 signatures"), (b'{"signatures":[7]}', "not an object"),
        (b'{"signatures":[{}]}', "base64"), (b'{"payload":"?","signatures":[{}]}', "base64"),
        (b'{"payload":"","signatures":[{"sig":""}]}', "one spelling"),
        (b'{"payload":"","signatures":[{"keyid":"","sig":""}]}', "one spelling"),
        (bytes(provenance.STATEMENT_MAX + 1), "at most"),
    ],
)  # fmt: skip
def test_what_is_no_envelope_is_refused(envelope: bytes, word: str) -> None:
    """Whatever lies in the store in place of a statement has one code."""
    assert word in refused(envelope)


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"a":1,"a":1}', b'{"a":1.5}', b"[" * 40])
def test_what_is_no_statement_is_refused(payload: bytes) -> None:
    """A signature over something else than JSON with bounds is no statement."""
    refused(sealed(payload))


def test_a_statement_is_bounded_when_it_is_made() -> None:
    """What nobody would read is not written."""
    sources = tuple((f"src/{number}.c", "ab" * 32) for number in range(4_000))
    with pytest.raises(ExecutorError, match="4000 sources") as caught:
        provenance.sign(replace(BUILD, sources=sources), FARM_KEY)
    assert caught.value.code == "config.invalid"
