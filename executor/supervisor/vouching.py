"""Who vouches for a module: enough publishers by their signatures, a builder by its statement.

Signature first, parsing after. When a module was signed nobody can say, so a publisher's key counts
while it is valid *now*: what was admitted by it has to be decided again when that ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from executor.core import manifest as manifests
from executor.core import provenance, signature
from executor.core.access import Party, of_key
from executor.core.manifest import Manifest
from executor.core.policy import Publisher, how_many
from executor.errors import ExecutorError
from executor.model import Digest, Release
from executor.supervisor.ports import Modules, Trust


@dataclass(frozen=True, slots=True)
class Vouched:
    """What a module says it is, and which live publishers vouch for it until when (ms, 0: ever)."""

    manifest: Manifest
    signers: list[Publisher]
    until: int = 0


def verify(module: bytes, release: Release, trust: Trust, now_ms: int) -> Vouched:
    """Digest, signatures, how many, and only then the manifest.

    Errors  `module.digest-mismatch`, `module.unsigned`, `module.signature-invalid`,
            `module.signer-untrusted`, `module.signer-revoked`, `module.manifest-invalid`.
    """
    if signature.digest(module) != release.digest:
        raise ExecutorError("module.digest-mismatch", f"`{Digest(release.digest)}`")
    publishers = trust.publishers(release.tenant, release.task)
    keys = signature.verify_module(module, [publisher.key for publisher in publishers])
    access = trust.policy().access
    signed = [publisher for publisher in publishers if publisher.key in keys]
    decided = [
        access.may(of_key(signer.key), "publish", release.tenant, release.task) for signer in signed
    ]
    signers = [signer for signer, it in zip(signed, decided, strict=True) if it.allowed]
    if signed and not signers:
        raise ExecutorError(
            "module.signer-untrusted",
            f"`{signed[0].name}` for `{release.tenant}/{release.task}`: {decided[0].why}",
            hint="`executor policy can-i publish TENANT/TASK --as NAME` says why",
        )
    needed = trust.policy().required(release.tenant, release.task).signatures
    valid = [s for s in signers if s.valid_at(now_ms)]
    live = [s for s in valid if not trust.is_revoked(s.key.key_id.hex())]
    if how_many(live) < needed:
        if how_many(valid) >= needed:
            names = sorted({s.name for s in valid} - {s.name for s in live})
            names = names or sorted({s.name for s in valid})
            raise ExecutorError("module.signer-revoked", ", ".join(f"`{n}`" for n in names))
        raise _too_few(module, release, needed, live, [s for s in signers if s not in valid])
    manifest = manifests.read(module)
    if manifest.task != release.task or manifest.version != release.version:
        raise ExecutorError(
            "module.manifest-invalid",
            f"it is `{manifest.task}` {manifest.version}, "
            f"released as `{release.task}` {release.version}",
        )
    return Vouched(manifest, live, until(signer.not_after for signer in live))


def _too_few(
    module: bytes, release: Release, needed: int, live: list[Publisher], lapsed: list[Publisher]
) -> ExecutorError:
    task = f"`{release.tenant}/{release.task}`"
    if lapsed:
        names = ", ".join(sorted({f"`{publisher.name}`" for publisher in lapsed}))
        return ExecutorError(
            "module.signer-untrusted", f"the key of {names} for {task} is not valid now",
            hint="sign it with a key that is, or move the key's `not_before` or `not_after`",
        )  # fmt: skip
    if live:
        return ExecutorError(
            "module.signer-untrusted", f"{how_many(live)} of {needed} that {task} needs",
            hint="collect the missing signatures, executor sign FILE --key KEY, and publish it",
            signed_by=", ".join(sorted({publisher.name for publisher in live})),
        )  # fmt: skip
    ids = ", ".join(f"`{key_id.hex()}`" for key_id in signature.signers(module))
    return ExecutorError("module.signer-untrusted", f"signed by {ids} for {task}")


def until(ends: Iterable[int]) -> int:
    """The first of these times, where 0 is never."""
    return min((end for end in ends if end), default=0)


def accepted(trust: Trust, names: frozenset[str], now_ms: int) -> list[Party]:
    """The builders of these names whose keys count now."""
    return [
        builder for builder in trust.policy().builders
        if builder.name in names
        and builder.valid_at(now_ms)
        and not trust.is_revoked(builder.key.key_id.hex())
    ]  # fmt: skip


async def check_provenance(
    modules: Modules, module: bytes, release: Release, trust: Trust, now_ms: int
) -> int:
    """Fetch the builder's statement and check it, where policy asks for one; until when it holds.

    Errors  `module.provenance-missing`, `module.provenance-invalid`.
    """
    names = trust.policy().required(release.tenant, release.task).builders
    if names is None:
        return 0
    try:
        data = await modules.provenance(release.digest, provenance.STATEMENT_MAX)
    except ExecutorError as error:
        if error.row.stage != "module":
            raise
        raise ExecutorError("module.provenance-invalid", error.detail) from None
    return judge(data, module, release, trust, now_ms)


def judge(data: bytes | None, module: bytes, release: Release, trust: Trust, now_ms: int) -> int:
    """As `check_provenance`, of a statement that is at hand."""
    names = trust.policy().required(release.tenant, release.task).builders
    if names is None:
        return 0
    if data is None:
        wanted = ", ".join(f"`{name}`" for name in sorted(names)) or "nobody"
        raise ExecutorError("module.provenance-missing", f"it must be built by {wanted}")
    builders = accepted(trust, names, now_ms)
    said = provenance.verify(data, signature.content_digest(module), builders)
    return said.builder.not_after
