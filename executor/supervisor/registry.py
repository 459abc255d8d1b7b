"""From a task's name to a module that may run: find, verify, authorise, compile, once.

The order is fixed: bytes by digest, then the digest itself, then the signature, then the manifest,
then the compiler, then policy. What was admitted stays until policy or trust change; a refusal
stays too, unless it may pass by itself. Sandboxes are born with what is admitted here.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Final

from executor.core import manifest as manifests
from executor.core import policy as policies
from executor.core import signature
from executor.core.complexity import LARGE, STANDARD
from executor.core.manifest import Manifest
from executor.core.policy import Publisher
from executor.errors import FINAL, TABLE, ExecutorError
from executor.model import Digest, Release
from executor.supervisor.artifacts import ArtifactCache
from executor.supervisor.compiling import Compiler, Product
from executor.supervisor.job import Admitted
from executor.supervisor.ports import Modules, Trust

# A refusal that may pass (a module not yet replicated, a compiler that could not start) is kept
# for this long, so that a flood of such tasks does not repeat the work for each.
_REFUSAL_S: Final = 1.0
# Behind the digest, in memory and on disk, of what was made under a `large` signer's caps.
_LARGE: Final = " large"

_Name = tuple[str, str]  # tenant, task


@dataclass(frozen=True, slots=True)
class _Refusal:
    error: ExecutorError
    digest: str
    until: float  # loop time; inf for what stays


@dataclass
class Registry:
    """See the module."""

    modules: Modules
    trust: Trust
    compiler: Compiler
    cache: ArtifactCache | None = None
    _admitted: dict[_Name, Admitted] = field(default_factory=dict)
    _refused: dict[_Name, _Refusal] = field(default_factory=dict)
    _products: dict[str, Product] = field(default_factory=dict)  # by digest and caps
    _pending: dict[_Name, asyncio.Task[Admitted]] = field(default_factory=dict)
    _generation: int = 0  # of policy and trust

    def now(self, tenant: str, task: str) -> Admitted | ExecutorError | None:
        """The decision that is already known for the live release, or None: then `admit`."""
        release = self.modules.release(tenant, task)
        if release is None:
            return self._unknown(tenant, task)
        name = (tenant, task)
        admitted = self._admitted.get(name)
        if admitted is not None and admitted.digest == release.digest:
            return admitted
        refused = self._refused.get(name)
        if (
            refused is not None and refused.digest == release.digest
            and time.monotonic() < refused.until
        ):  # fmt: skip
            return refused.error
        return None

    def _unknown(self, tenant: str, task: str) -> ExecutorError:
        known = [r.task for r in self.modules.releases() if r.tenant == tenant]
        hint = f"released for `{tenant}`: {', '.join(sorted(known)[:16])}" if known else ""
        return ExecutorError("policy.task-unknown", f"`{tenant}/{task}`", hint=hint)

    async def admit(self, tenant: str, task: str) -> Admitted:
        """Bring a task's live release to where it can run. Errors  `module.*`, `policy.*`."""
        known = self.now(tenant, task)
        if isinstance(known, ExecutorError):
            raise known.again()
        if known is not None:
            return known
        name = (tenant, task)
        running = self._pending.get(name)
        if running is None:
            running = asyncio.get_running_loop().create_task(self._admit(name))
            self._pending[name] = running
            running.add_done_callback(lambda _: self._pending.pop(name, None))
        return await asyncio.shield(running)

    async def _admit(self, name: _Name) -> Admitted:
        while True:
            generation = self._generation
            release = self.modules.release(*name)
            if release is None:
                raise self._unknown(*name)
            admitted = await self._decide(name, release, generation)
            # What was decided under a policy that is no longer in force is decided again.
            if generation == self._generation:
                self._admitted[name] = admitted
                return admitted

    async def _decide(self, name: _Name, release: Release, generation: int) -> Admitted:
        try:
            return await self._examine(release)
        except ExecutorError as error:
            stays = TABLE[error.code].klass in FINAL
            until = float("inf") if stays else time.monotonic() + _REFUSAL_S
            if generation == self._generation:
                self._refused[name] = _Refusal(error.again(), release.digest, until)
            raise

    async def _examine(self, release: Release) -> Admitted:
        if self.trust.is_revoked(release.digest):
            raise ExecutorError("module.signer-revoked", f"`{release.digest}`")
        publishers = self.trust.publishers(release.tenant, release.task)
        most = (LARGE if any(p.large for p in publishers) else STANDARD).module_bytes
        module = await self.modules.get(release.digest, most)
        if module is None:
            raise ExecutorError("module.not-found", f"`{release.digest}`")
        if len(module) > most:
            raise ExecutorError("module.too-complex", f"{len(module)} bytes, at most {most}")
        manifest, signers = verify(module, release, self.trust)
        large = any(signer.large for signer in signers)
        product = await self._product(release, module, large=large)
        policies.check_abi(product.imports, product.exports)
        authority = policies.authorise(
            self.trust.policy(), tenant=release.tenant, task=release.task, manifest=manifest,
            imports=product.imports, signers=signers,
        )  # fmt: skip
        if product.memory_min > authority.limits.memory_bytes:
            raise ExecutorError(
                "limit.memory-exceeded",
                f"it starts with {product.memory_min} bytes of {authority.limits.memory_bytes}",
            )
        key_ids = tuple(signer.key.key_id.hex() for signer in signers)
        names = tuple(signer.name for signer in signers)
        return Admitted(release, manifest, authority, product.artifact, key_ids, names)

    async def _product(self, release: Release, module: bytes, *, large: bool) -> Product:
        if not large and len(module) > STANDARD.module_bytes:
            raise ExecutorError("module.too-complex", f"{len(module)} bytes, and no signer is "
                                f"`large`; {STANDARD.module_bytes} are allowed")  # fmt: skip
        # What was compiled under wider caps is another thing than under these.
        key = release.digest + _LARGE if large else release.digest
        if key not in self._products:
            self._prune()
            self._products[key] = await self._make(key, release, module, large=large)
        return self._products[key]

    async def _make(self, key: str, release: Release, module: bytes, *, large: bool) -> Product:
        engine = (await self.compiler.zygote.warm()).engine
        if self.cache is not None:
            found = await asyncio.to_thread(self.cache.get, key, engine)
            if found is not None:
                return found
        product = await self.compiler.compile(
            module, tenant=release.tenant, memory_max=self.trust.policy().limits.memory_bytes,
            large=large,
        )  # fmt: skip
        if self.cache is not None:
            await asyncio.to_thread(self.cache.put, key, engine, product)
        return product

    def _prune(self) -> None:
        """Let go of what no release stands for any more: each artifact is an open file."""
        live = {(r.tenant, r.task): r.digest for r in self.modules.releases()}
        digests = set(live.values())
        self._products = {
            key: made for key, made in self._products.items()
            if key.removesuffix(_LARGE) in digests
        }  # fmt: skip
        self._admitted = {n: a for n, a in self._admitted.items() if live.get(n) == a.digest}
        self._refused = {n: r for n, r in self._refused.items() if live.get(n) == r.digest}

    def of_tenant(self, tenant: str) -> list[Admitted]:
        """What a sandbox of this tenant is born with: live releases that were admitted."""
        return [
            admitted
            for (owner, task), admitted in self._admitted.items()
            if owner == tenant and self.now(tenant, task) is admitted
        ]

    def revoked(self) -> set[Digest]:
        """What was admitted and is revoked now: by its digest, or with all who signed it."""
        return {
            admitted.digest
            for admitted in self._admitted.values()
            if self.trust.is_revoked(admitted.digest)
            or all(map(self.trust.is_revoked, admitted.signers))
        }

    def forget(self) -> None:
        """Policy or trust changed: decide everything again, from the artifacts at hand."""
        self._generation += 1
        self._admitted.clear()
        self._refused.clear()

    def close(self) -> None:
        """Give the artifacts back, and up what is still being compiled."""
        for running in self._pending.values():
            running.cancel()
        self._products.clear()
        self.forget()


def verify(module: bytes, release: Release, trust: Trust) -> tuple[Manifest, list[Publisher]]:
    """Signature first, parsing after: the manifest and the trusted publishers that signed.

    Errors  `module.digest-mismatch`, `module.unsigned`, `module.signature-invalid`,
            `module.signer-untrusted`, `module.signer-revoked`, `module.manifest-invalid`.
    """
    if signature.digest(module) != release.digest:
        raise ExecutorError("module.digest-mismatch", f"`{Digest(release.digest)}`")
    publishers = trust.publishers(release.tenant, release.task)
    keys = signature.verify_module(module, [publisher.key for publisher in publishers])
    signers = [publisher for publisher in publishers if publisher.key in keys]
    if not signers:
        ids = ", ".join(f"`{key_id.hex()}`" for key_id in signature.signers(module))
        raise ExecutorError(
            "module.signer-untrusted", f"signed by {ids} for `{release.tenant}/{release.task}`"
        )
    live = [s for s in signers if not trust.is_revoked(s.key.key_id.hex())]
    if not live:
        raise ExecutorError("module.signer-revoked", f"`{signers[0].name}`")
    manifest = manifests.read(module)
    if manifest.task != release.task or manifest.version != release.version:
        raise ExecutorError(
            "module.manifest-invalid",
            f"it is `{manifest.task}` {manifest.version}, "
            f"released as `{release.task}` {release.version}",
        )
    return manifest, live
