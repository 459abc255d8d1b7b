"""Verbs for modules: sign, verify, inspect, keygen; `build`, `run`, `publish` stand elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from executor.cli.base import Verb, read_file, run_async, state, unwritable, write_file
from executor.cli.output import number, size
from executor.config import Config
from executor.core import abi, manifest, policy, signature, wasm
from executor.core.manifest import Manifest
from executor.core.policy import Publisher
from executor.core.signature import PublicKey, SecretKey
from executor.errors import ExecutorError
from executor.supervisor.compiling import Product
from executor.supervisor.service import new_compiler, new_zygote


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


def read_key(path: Path) -> SecretKey:
    """A secret key from its file. Errors  `config.missing`, `config.invalid`."""
    data = read_file(path, most=64 * 1024)
    if path.stat().st_mode & 0o077:
        raise ExecutorError(
            "config.invalid", f"others can use the key in `{path}`", hint=f"chmod 600 {path}"
        )
    try:
        return SecretKey.parse(data)
    except (ExecutorError, ValueError):
        raise ExecutorError(
            "config.invalid", f"`{path}` holds no Ed25519 secret key",
            hint="make one with `executor keygen NAME`",
        ) from None  # fmt: skip


@click.command("keygen", cls=Verb)
@click.argument("name", type=click.Path(path_type=Path))
def keygen(name: Path) -> None:
    """Make a signing key: NAME.key (mode 0600) and NAME.pub.

    Example: executor keygen keys/author
    """
    key = SecretKey.generate()
    if name.parent != Path() and not name.parent.is_dir():
        raise ExecutorError("config.missing", f"no folder `{name.parent}`", hint="make it first")
    secret, public = Path(f"{name}.key"), Path(f"{name}.pub")
    if public.exists():
        raise exists(public)  # before the secret is made
    write_secret(secret, key.pem())
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
    secret, data = read_key(key), read_file(module)
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


def _publishers(config: Config, keys: tuple[str, ...]) -> list[Publisher]:
    if not keys:
        return list(config.publishers)
    named = []
    for text in keys:
        path = Path(text)
        raw: str | bytes = read_file(path, most=64 * 1024) if path.exists() else text
        try:
            named.append(Publisher(text, PublicKey.parse(raw), ("*/*",)))
        except (ExecutorError, ValueError):
            raise ExecutorError("config.invalid", f"`{text}` is no public key") from None
    return named


@click.command("verify", cls=Verb)
@click.argument("module", type=click.Path(path_type=Path))
@click.option(
    "--key", "keys", multiple=True, help="A public key or its file; else executor.toml's."
)
def verify(module: Path, keys: tuple[str, ...]) -> None:
    """Check MODULE's signature against trusted keys.

    Example: executor verify hello.wasm --key keys/author.pub
    """
    config, data = state().config(), read_file(module)
    publishers = _publishers(config, keys)
    trusted = signature.verify_module(data, [p.key for p in publishers])
    signers = [p for p in publishers if p.key in trusted]
    if not signers:
        ids = ", ".join(key_id.hex() for key_id in signature.signers(data))
        raise ExecutorError("module.signer-untrusted", f"signed by {ids}")
    names = [s.key.key_id.hex() for s in signers]
    if revoked := config.revoked & {*names, signature.digest(data)}:
        raise ExecutorError("module.signer-revoked", ", ".join(sorted(revoked)))
    described = manifest.read(data)
    state().out.data(
        {"schema": "executor.verified/1", "digest": signature.digest(data),
         "signers": [s.name for s in signers], "task": described.task,
         "version": described.version},
        f"ok  {described.task} {described.version} · signed by "
        f"{', '.join(s.name for s in signers)}\n{signature.digest(data)}",
    )  # fmt: skip


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
