"""What should not be in a module's bytes: keys, tokens, passwords, paths of the host it came from.

A scan is for whoever publishes or grants, before it does; admission does not depend on it. It reads
the file as bytes, decodes no section, and never shows what it found: only its kind and its place.
Each pattern is bounded and linear, and so is the number of findings. Absence proves nothing: a
secret that is encoded, split or compressed is not seen.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from executor.core import wasm

FINDINGS_MAX: Final = 256
SECTION_NAMES: Final = {
    1: "type", 2: "import", 3: "function", 4: "table", 5: "memory", 6: "global", 7: "export",
    8: "start", 9: "element", 10: "code", 11: "data", 12: "data count", 13: "tag",
}  # fmt: skip
# Custom sections that tools write and that say nothing of secrets; others are named.
KNOWN_SECTIONS: Final = frozenset({
    "executor.manifest", "signature", "name", "producers", "target_features",
})  # fmt: skip

# Forms that their issuers publish, so that they can be found. The last of ours is PKCS #8 in DER.
_FORMS: Final = tuple((kind, re.compile(pattern)) for kind, pattern in (
    ("private key", rb"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----"),
    ("age key", rb"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
    ("NATS seed", rb"(?<![A-Z2-7])S[UAONCX][A-Z2-7]{56}(?![A-Z2-7])"),
    ("AWS key", rb"(?<![A-Z0-9])A(?:KIA|SIA)[A-Z0-9]{16}(?![A-Z0-9])"),
    ("GitHub token", rb"gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60}"),
    ("GitLab token", rb"glpat-[A-Za-z0-9_-]{20}"),
    ("Slack token", rb"xox[abeprs]-[A-Za-z0-9-]{10,64}"),
    ("Google key", rb"AIza[A-Za-z0-9_-]{35}"),
    ("Stripe key", rb"[sr]k_live_[A-Za-z0-9]{24}"),
    ("JSON web token", rb"eyJ[A-Za-z0-9_-]{8,512}\.eyJ[A-Za-z0-9_-]{8,2048}\.[\w-]{16}"),
    ("login in a URL",
     rb"[a-z][a-z0-9+]{1,15}://[^\s/:@\x00\"']{1,64}:[^\s/@\x00\"']{1,64}@"),
    ("authorisation header", rb"(?i:authorization: ?(?:bearer|basic)) [\w.~+/=-]{8,64}"),
    ("private key", re.escape(bytes.fromhex("302e020100300506032b657004220420"))),
))  # fmt: skip
_ASSIGNED: Final = re.compile(
    rb"(?i:passw(?:or)?d|passphrase|secret|token|api_?key|access_?key)[\"']?"
    rb"[ ]{0,4}[=:][ ]{0,4}[\"']?([^\s\"'\x00-\x1f]{8,128})"
)
_ENTROPY_MIN: Final = 3.0  # bits a byte: a random text of 8 has 3, `changeme` and `{password}` less
_PATH: Final = re.compile(rb"/(?:home|root|Users)/[\w.-]{1,64}/|[A-Z]:\\Users\\[\w.-]{1,64}\\")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found; `grave` ones are a reason not to publish."""

    kind: str
    where: str  # a section
    offset: int  # in the file
    grave: bool = True


def scan(module: bytes) -> tuple[Finding, ...]:
    """Everything found, in the order of the file; at most FINDINGS_MAX.

    Errors  `module.invalid`, `module.too-complex` as `wasm.sections`.
    """
    sections = wasm.sections(module)
    # Grave ones first: no number of notes may crowd one out.
    found = itertools.islice(
        itertools.chain(
            (Finding(kind, _where(sections, at), at) for kind, at in _secrets(module)),
            _notes(module, sections),
        ),
        FINDINGS_MAX,
    )
    return tuple(sorted(found, key=lambda finding: finding.offset))


def _notes(module: bytes, sections: tuple[wasm.Section, ...]) -> Iterator[Finding]:
    for section in sections:
        if section.id == wasm.CUSTOM and section.name not in KNOWN_SECTIONS:
            yield Finding("unknown section", section.name, section.start, grave=False)
    for match in _PATH.finditer(module):
        where = _where(sections, match.start())
        yield Finding("path of a host", where, match.start(), grave=False)


def _secrets(data: bytes) -> Iterator[tuple[str, int]]:
    seen: set[int] = set()
    for kind, pattern in _FORMS:
        for match in pattern.finditer(data):
            seen |= {match.start(), match.end()}
            yield kind, match.start()
    for match in _ASSIGNED.finditer(data):
        value = match[1]
        if match.start(1) not in seen and entropy(value) >= _ENTROPY_MIN and _is_mixed(value):
            yield "assigned secret", match.start()


def _is_mixed(value: bytes) -> bool:
    """Whether it has digits and letters: a word in a message has letters alone."""
    return any(48 <= byte <= 57 for byte in value) and any(  # noqa: PLR2004 - ASCII digits
        chr(byte).isalpha() for byte in value
    )


def entropy(value: bytes) -> float:
    """Bits a byte, from how often each byte occurs in it."""
    counts = Counter(value).values()
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts)


def _where(sections: tuple[wasm.Section, ...], offset: int) -> str:
    section = next((s for s in sections if s.start <= offset < s.end), None)
    if section is None:
        return "header"
    return section.name or SECTION_NAMES.get(section.id, f"section {section.id}")
