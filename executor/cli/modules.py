"""Verbs for modules: sign, verify, inspect, keygen; `build`, `run`, `publish` stand elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from executor.cli.base import Verb, read_file, run_async, state, unwritable, write_file
from executor.cli.output import number, size
from executor.config import Config
from executor.core import abi, manifest, policy, provenance, signature, wasm
from executor.core.access import Party
from executor.core.manifest import Manifest
from executor.core.policy import Publisher, Required
from executor.core.provenance import Statement
from executor.core.signature import PublicKey, SecretKey
from executor.errors import ExecutorError
from executor.model import Release
from executor.supervisor import vouching
from executor.supervisor.compiling import Product
from executor.supervisor.service import new_compiler, new_zygote
from executor.trust.file import FileTrust

VARIABLE: Final = "EXECUTOR_PASSPHRASE"


def write_secret(path: Path, data: bytes) -> None:
    """Make a file that only its owner can read; never over another one.

    Errors  `config.invalid` if it exists.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise exists(path) from None
    except OSError as error:
        raise unwritable(path, error) from None
    with os.fdopen(fd, "wb") as file:
        file.write(data)


def exists(path: Path) -> ExecutorError:
    """What is to be made is there already."""
    return ExecutorError(
        "config.invalid", f"`{path}` exists", hint="name another file, or move it away first"
    )


def passphrase(path: Path, *, twice: bool = False) -> bytes:
    """Of a key that signs by hand: from the environment, else asked for on a terminal.

    Errors  `config.missing` where there is neither.
    """
    text = os.environ.get(VARIABLE, "")
    if not text and sys.stdin.isatty():
        text = click.prompt(f"passphrase of {path}", hide_input=True, err=True,
                            confirmation_prompt=twice)  # fmt: skip
    if not text:
        raise ExecutorError("config.missing", f"the passphrase of `{path}`", hint=f"set {VARIABLE}")
    return text.encode("utf-8", "surrogateescape")


def read_key(path: Path, *, ask: bool = False) -> SecretKey:
    """A secret key from its file; `ask` for the passphrase if it has one.

    What serves has nobody to ask: its key is kept by the file's mode alone.

    Errors  `config.missing`, `config.invalid`.
    """
    data = read_file(path, most=64 * 1024)
    if path.stat().st_mode & 0o077:
        raise ExecutorError(
            "config.invalid", f"others can use the key in `{path}`", hint=f"chmod 600 {path}"
        )
    locked = SecretKey.is_locked(data)
    word = passphrase(path) if locked and ask else None
    try:
        return SecretKey.parse(data, word)
    except (ExecutorError, ValueError):
        if locked:
            raise ExecutorError(
                "config.invalid",
                f"`{path}` is encrypted" + (", with another passphrase" if ask else ""),
                hint=f"set {VARIABLE} to its passphrase" if ask else "serve with a key that is "
                "not encrypted, of mode 0600: executor keygen NAME",
            ) from None  # fmt: skip
        raise ExecutorError(
            "config.invalid", f"`{path}` holds no Ed25519 secret key",
            hint="make one with `executor keygen NAME`; OpenSSH's own encryption is not read",
        ) from None  # fmt: skip


@click.command("keygen", cls=Verb)
@click.argument("name", type=click.Path(path_type=Path))
@click.option(
    "--encrypt", is_flag=True, help="With a passphrase: asked for, or EXECUTOR_PASSPHRASE."
)
def keygen(name: Path, encrypt: bool) -> None:  # noqa: FBT001
    """Make a signing key: NAME.key (mode 0600) and NAME.pub.

    An encrypted key is for people who sign; `serve` has nobody to ask.

    Example: executor keygen keys/author
    """
    key = SecretKey.generate()
    if name.parent != Path() and not name.parent.is_dir():
        raise ExecutorError("config.missing", f"no folder `{name.parent}`", hint="make it first")
    secret, public = Path(f"{name}.key"), Path(f"{name}.pub")
    if public.exists():
        raise exists(public)  # before the secret is made
    write_secret(secret, key.pem(passphrase(secret, twice=True) if encrypt else None))
    write_file(public, f"{key.public.text}\n".encode("ascii"))
    state().out.data(
        {"schema": "executor.key/1", "key_id": key.public.key_id.hex(), "public": key.public.text,
         "secret_file": str(secret), "public_file": str(public)},
        f"{key.public.text}\nsecret  {secret} (keep it)\npublic  {public} (give it to operators)",
    )  # fmt: skip


@click.command("sign", cls=Verb)
@click.argument("module", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), required=True, help="A .key file.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write there instead.")
def sign(module: Path, key: Path, out: Path | None) -> None:
    """Sign MODULE; a second signature is added beside the first.

    Example: executor sign hello.wasm --key keys/author.key
    """
    secret, data = read_key(key, ask=True), read_file(module)
    manifest.read(data)  # a module that says nothing of itself is of no use to anybody
    signed = signature.sign_module(data, secret)
    target = out or module
    write_file(target, signed)
    digest = signature.digest(signed)
    state().out.data(
        {"schema": "executor.signed/1", "file": str(target), "digest": digest,
         "key_id": secret.public.key_id.hex()},
        f"{digest}\nsigned by {secret.public.key_id.hex()} → {target}",
    )  # fmt: skip


def read_statement(module: Path, named: Path | None) -> bytes | None:
    """The statement of who built a module: from the file named, or from the one beside it."""
    beside = module.with_name(module.name + provenance.SUFFIX)
    if named is None and not beside.exists():
        return None
    data = read_file(named or beside, most=provenance.STATEMENT_MAX + 1)
    if len(data) > provenance.STATEMENT_MAX:
        raise ExecutorError("module.provenance-invalid", f"`{named or beside}` is too large")
    return data


def public_key(text: str) -> PublicKey:
    """A public key, or the one in the file of that name. Errors  `config.invalid`."""
    path = Path(text)
    raw: str | bytes = read_file(path, most=64 * 1024) if path.exists() else text
    try:
        return PublicKey.parse(raw)
    except (ExecutorError, ValueError):
        raise ExecutorError("config.invalid", f"`{text}` is no public key") from None


def _publishers(config: Config, keys: tuple[str, ...]) -> list[Publisher]:
    if not keys:
        return list(config.publishers)
    return [Publisher(text, public_key(text), ("*/*",)) for text in keys]


@click.command("verify", cls=Verb)
@click.argument("module", type=click.Path(path_type=Path))
@click.option(
    "--key", "keys", multiple=True, help="A public key or its file; else executor.toml's."
)
@click.option("--tenant", help="Whose task it is; else every tenant's requirements hold.")
@click.option(
    "--provenance",
    "statement",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Who built it; default: MODULE.provenance.json.",
)
@click.option(
    "--builder",
    "builders",
    multiple=True,
    help="A builder's public key or its file: check who built it.",
)
def verify(
    module: Path, keys: tuple[str, ...], tenant: str | None, statement: Path | None,
    builders: tuple[str, ...],
) -> None:  # fmt: skip
    """Check MODULE's signatures, and who built it.

    With the keys of executor.toml, what its [[requirement]] asks for is checked as well.

    Example: executor verify hello.wasm --key keys/author.pub
    """
    config, data = state().config(), read_file(module)
    said, now = read_statement(module, statement), time.time_ns() // 1_000_000
    digest = signature.digest(data)
    publishers = _publishers(config, keys)
    trusted = signature.verify_module(data, [p.key for p in publishers])
    signers = [p for p in publishers if p.key in trusted and p.valid_at(now)]
    if not signers:
        ids = ", ".join(key_id.hex() for key_id in signature.signers(data))
        raise ExecutorError("module.signer-untrusted", f"signed by {ids}")
    live = [s for s in signers if s.key.key_id.hex() not in config.revoked]
    if not live or digest in config.revoked:
        names = {s.key.key_id.hex() for s in signers} | {digest}
        raise ExecutorError("module.signer-revoked", ", ".join(sorted(config.revoked & names)))
    described = manifest.read(data)
    if not keys:
        _check_required(config, data, said, described, live, tenant, now)
    built = _built(config, data, said, builders, asked=bool(statement or builders))
    state().out.data(
        {"schema": "executor.verified/1", "digest": digest, "signers": [s.name for s in live],
         "task": described.task, "version": described.version,
         "content_digest": signature.content_digest(data),
         "builder": built.builder.name if built else None,
         "sources": dict(built.sources) if built else None},
        f"ok  {described.task} {described.version} · signed by {', '.join(s.name for s in live)}"
        + (f" · built by {built.builder.name} from {len(built.sources)} files" if built else "")
        + f"\n{digest}",
    )  # fmt: skip


def _check_required(
    config: Config, data: bytes, said: bytes | None, described: Manifest,
    signers: list[Publisher], tenant: str | None, now: int,
) -> None:  # fmt: skip
    """What admission would ask for, for the tenants whose task it can be."""
    trust = FileTrust(config)
    for name in [tenant] if tenant else [party.name for party in config.policy.tenants]:
        task = described.task
        if tenant is None and (
            config.policy.required(name, task) == Required()
            or not any(signer.may_sign(name, task) for signer in signers)
        ):
            continue
        live = Release(name, task, signature.digest(data), described.version)
        vouching.verify(data, live, trust, now)
        vouching.judge(said, data, live, trust, now)


def _built(
    config: Config, data: bytes, said: bytes | None, builders: tuple[str, ...], *, asked: bool
) -> Statement | None:
    """Who says that it was built there; None if nobody asked and nobody is known."""
    parties = [Party(text, public_key(text)) for text in builders] or [
        b for b in config.document.builders if b.key.key_id.hex() not in config.revoked
    ]
    if not asked and (said is None or not parties):
        return None
    if said is None:
        raise ExecutorError("module.provenance-missing", "there is no file with it")
    return provenance.verify(said, signature.content_digest(data), parties)


async def examine(config: Config, data: bytes) -> tuple[Manifest, Product]:
    """What admission would find in a module, signature aside. Errors  `module.*`, `limit.*`."""
    described = manifest.read(data)
    zygote = new_zygote(config)
    try:
        product = await new_compiler(config, zygote).compile(
            data, tenant="", memory_max=config.policy.limits.memory_bytes,
            large=any(publisher.large for publisher in config.publishers),
        )  # fmt: skip
    finally:
        await zygote.close()
    policy.check_abi(product.imports, product.exports)
    return described, product


def wanted(product: Product) -> dict[str, list[str]]:
    """The capabilities a module imports, and their functions."""
    found: dict[str, list[str]] = {}
    for module, name, _ in product.imports:
        if module != abi.TASK:
            found.setdefault(module, []).append(name)
    return found


@click.command("inspect", cls=Verb)
@click.argument("module", type=click.Path(path_type=Path))
def inspect(module: Path) -> None:
    """Show what MODULE is, who signed it and what it asks for.

    Example: executor inspect hello.wasm
    """
    config, data = state().config(), read_file(module)
    info: dict[str, Any] = {
        "schema": "executor.module/1", "file": str(module), "digest": signature.digest(data),
        "size": len(data), "kind": wasm.kind(data),
        "sections": [[s.id, s.name, s.end - s.start] for s in wasm.sections(data)],
    }  # fmt: skip
    lines = [f"module    {info['digest']} · {number(len(data))} bytes"]
    lines += [f"signed    {_signed(config, data, info)}"]
    described, product = run_async(examine(config, data), "the compiler")
    info["manifest"] = json.loads(manifest.encode(described))
    info["wants"] = wanted(product)
    info["memory_min"] = product.memory_min
    lines.insert(1, f"task      {described.task} {described.version} · ABI {described.abi}"
                 + (f" · {described.summary}" if described.summary else ""))  # fmt: skip
    lines.append(f"memory    starts with {size(product.memory_min)}")
    reasons = {want.capability: want.reason for want in described.wants}
    for capability, functions in info["wants"].items():
        served = "supervisor" if abi.FUNCTIONS[functions[0]].mediated else "sandbox"
        lines.append(
            f"wants     {', '.join(sorted(functions))} · served by the {served} · "
            f"“{reasons.get(capability, '')}” · grant: {policy.grant_line(capability, functions)}"
        )
    state().out.data(info, "\n".join(lines))


def _signed(config: Config, data: bytes, info: dict[str, Any]) -> str:
    try:
        keys = signature.verify_module(data, [p.key for p in config.publishers])
        ids = [key_id.hex() for key_id in signature.signers(data)]
    except ExecutorError as error:
        info["signed"] = {"code": error.code}
        return f"no: {error.message}"
    names = [p.name for p in config.publishers if p.key in keys]
    info["signed"] = {"key_ids": ids, "publishers": names}
    trusted = f"trusted as {', '.join(names)}" if names else "by nobody that executor.toml trusts"
    return f"{', '.join(ids)} · {trusted}"


VERBS = (sign, verify, inspect, keygen)
