"""From a task's name to a module that may run: find, verify, authorise, compile, once.

The order is fixed: bytes by digest, then the digest itself, then the signatures, then the manifest,
then the builder's statement, then the compiler, then policy. What was admitted stays until policy
or trust change, or a key that it needs expires; a refusal stays too, unless it may pass by itself.
Sandboxes are born with what is admitted here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from executor.core import policy as policies
from executor.core.complexity import LARGE, STANDARD
from executor.errors import FINAL, TABLE, ExecutorError
from executor.model import Digest, Release
from executor.supervisor.artifacts import ArtifactCache
from executor.supervisor.clock import host_ms
from executor.supervisor.compiling import Compiler, Product
from executor.supervisor.job import Admitted
from executor.supervisor.ports import Modules, Trust
from executor.supervisor.vouching import check_provenance, until, verify

# A refusal that may pass (a module not yet replicated, a compiler that could not start) is kept
# for this long, so that a flood of such tasks does not repeat the work for each.
_REFUSAL_S: Final = 1.0
# Codes about what no digest covers: the same release may pass later, without a reload.
_MENDABLE: Final = frozenset({"module.provenance-invalid"})
# Behind the digest, in memory and on disk, of what was made under a `large` signer's caps.
_LARGE: Final = " large"

# Admissions that are remembered without what they hold, so that a later revocation finds all that
# may still run. A few hundred bytes each.
_PAST_MAX: Final = 10_000

_Name = tuple[str, str]  # tenant, task


@dataclass(frozen=True, slots=True)
class _Refusal:
    error: ExecutorError
    digest: str
    until: float  # loop time; inf for what stays


@dataclass(frozen=True, slots=True)
class _Past:
    """An admission: by whom, without the artifact, whose file would stay open."""

    release: Release
    signers: tuple[str, ...]
    publishers: tuple[str, ...]


@dataclass
class Registry:
    """See the module."""

    modules: Modules
    trust: Trust
    compiler: Compiler
    cache: ArtifactCache | None = None
    now_ms: Callable[[], int] = host_ms
    _admitted: dict[_Name, Admitted] = field(default_factory=dict)
    _refused: dict[_Name, _Refusal] = field(default_factory=dict)
    # Sandboxes may still hold what another release or a reload took out of `_admitted`.
    _past: dict[tuple[_Name, Digest], _Past] = field(default_factory=dict)
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
        if (
            admitted is not None and admitted.digest == release.digest
            and (not admitted.until or self.now_ms() <= admitted.until)
        ):  # fmt: skip
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
                self._remember(name, admitted)
                return admitted

    def _remember(self, name: _Name, admitted: Admitted) -> None:
        key = (name, admitted.digest)
        self._past.pop(key, None)
        self._past[key] = _Past(admitted.release, admitted.signers, admitted.publishers)
        if len(self._past) > _PAST_MAX:
            del self._past[next(iter(self._past))]

    async def _decide(self, name: _Name, release: Release, generation: int) -> Admitted:
        try:
            return await self._examine(release)
        except ExecutorError as error:
            stays = TABLE[error.code].klass in FINAL and not self._may_pass(error.code, name)
            passes = float("inf") if stays else time.monotonic() + _REFUSAL_S
            if generation == self._generation:
                self._refused[name] = _Refusal(error.again(), release.digest, passes)
            raise

    def _may_pass(self, code: str, name: _Name) -> bool:
        """Whether time alone, or what no digest covers, can turn this refusal."""
        now = self.now_ms()
        return code in _MENDABLE or any(p.not_before > now for p in self.trust.publishers(*name))

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
        now = self.now_ms()
        vouched = verify(module, release, self.trust, now)
        signers = vouched.signers
        built = await check_provenance(self.modules, module, release, self.trust, now)
        large = any(signer.large for signer in signers)
        product = await self._product(release, module, large=large)
        policies.check_abi(product.imports, product.exports)
        authority = policies.authorise(
            self.trust.policy(), tenant=release.tenant, task=release.task,
            manifest=vouched.manifest, imports=product.imports, signers=signers, at=now,
        )  # fmt: skip
        if product.memory_min > authority.limits.memory_bytes:
            raise ExecutorError(
                "limit.memory-exceeded",
                f"it starts with {product.memory_min} bytes of {authority.limits.memory_bytes}",
            )
        key_ids = tuple(signer.key.key_id.hex() for signer in signers)
        names = tuple(signer.name for signer in signers)
        return Admitted(release, vouched.manifest, authority, product.artifact, key_ids, names,
                        until([vouched.until, built, authority.not_after]))  # fmt: skip

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
        """What was ever admitted and is revoked now, each told once.

        By its digest, or with too many who signed it. Also what is no release any more: a bad
        module is first replaced, then revoked, and a long attempt of it still runs.
        """
        gone = [
            key for key, past in self._past.items()
            if self.trust.is_revoked(past.release.digest) or self._bereft(past)
        ]  # fmt: skip
        return {self._past.pop(key).release.digest for key in gone}

    def _bereft(self, admitted: _Past) -> bool:
        """Whether too few are left of those that vouched: keys that are revoked, or not listed."""
        names = zip(admitted.signers, admitted.publishers, strict=True)
        release = admitted.release
        publishers = self.trust.publishers(release.tenant, release.task)
        listed = {publisher.key.key_id.hex() for publisher in publishers}
        left = [(k, n) for k, n in names if k in listed and not self.trust.is_revoked(k)]
        needed = self.trust.policy().required(release.tenant, release.task).signatures
        few = min(len({key for key, _ in left}), len({name for _, name in left})) < needed
        return few and len(left) < len(admitted.signers)

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
