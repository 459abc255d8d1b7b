"""The family `trust`: who signs, what is signed, and putting it in force."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from executor import config_document
from executor.cli import output
from executor.cli.base import Family, read_file, run_async, state, write_file
from executor.cli.modules import write_secret
from executor.cli.serving import settings
from executor.cli.signing import adopt, changing, push_now, repository_of, secrets_of
from executor.cli.trusting import fetch_and_verify
from executor.config import Config
from executor.core.signature import PublicKey, SecretKey
from executor.errors import ExecutorError
from executor.transport.connection import Connection

if TYPE_CHECKING:  # the library is loaded by the verbs that need it
    from executor.trust.repository import Repository, Rule, Signing

POLICY_FILE: Final = "policy.toml"
# Whose keys an option names → the roles it stands for.
_WHO: Final = {
    "root": ("root",), "targets": ("targets",), "policy": ("policy",), "releases": ("releases",),
    "online": ("snapshot", "timestamp"),
}  # fmt: skip
_ROLES: Final = ("root", "targets", "policy", "releases", "snapshot", "timestamp")
_NUMBER: Final = re.compile(rf"({'|'.join(_ROLES)})=(\d{{1,4}})\Z")
_HOURS_SHOWN: Final = 48


@click.group("trust", cls=Family)
def trust() -> None:
    """Sign who may do what and what is live, and put it in force."""


def _option_folder(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--folder", type=click.Path(path_type=Path, file_okay=False),
                        help="The repository; else executor.toml's.")(function)  # fmt: skip


def _signing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--offline", is_flag=True, help="Do not push: no NATS here."),
        _option_folder,
        click.option("--key", "keys", type=click.Path(path_type=Path), multiple=True,
                     help="A .key file; else all that are here."),
    ):  # fmt: skip
        function = option(function)
    return function


def _rule_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--days", "days", multiple=True, metavar="ROLE=N", help="For how long."),
        click.option("--threshold", "thresholds", multiple=True, metavar="ROLE=N",
                     help="How many must sign."),
        *(click.option(f"--{who}", f"{who}_keys", multiple=True, metavar="KEY",
                       help="A public key, or its file.") for who in reversed(_WHO)),
    ):  # fmt: skip
        function = option(function)
    return function


def _numbers(texts: Sequence[str], what: str) -> dict[str, int]:
    found = {}
    for text in texts:
        match = _NUMBER.match(text)
        if match is None:
            raise click.BadParameter(f"`--{what} {text}` is not ROLE=N, of {', '.join(_ROLES)}.")
        found[match[1]] = int(match[2])
    return found


def _public(text: str) -> PublicKey:
    path = Path(text)
    try:
        return PublicKey.parse(read_file(path, most=64 * 1024) if path.is_file() else text)
    except (ExecutorError, ValueError):
        raise ExecutorError("config.invalid", f"`{text}` is no public key",
                            hint="name a .pub file of `executor keygen`") from None  # fmt: skip


def _keys(options: dict[str, Any]) -> dict[str, tuple[PublicKey, ...]]:
    """Role → keys, of those that options name."""
    return {
        role: tuple(map(_public, options[f"{who}_keys"]))
        for who, roles in _WHO.items() if options[f"{who}_keys"]
        for role in roles
    }  # fmt: skip


def local_keys(folder: Path) -> dict[str, SecretKey]:
    """Make a key of each kind for one operator, mode 0600; role → key."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made: dict[str, SecretKey] = {}
    for who, roles in {**_WHO, "root": ("root", "targets")}.items():
        if who == "targets":
            continue
        key = SecretKey.generate()
        write_secret(folder / f"{who}.key", key.pem())
        write_file(folder / f"{who}.pub", f"{key.public.text}\n".encode("ascii"))
        made |= dict.fromkeys(roles, key)
    return made


def single_rules(keys: dict[str, SecretKey]) -> dict[str, Rule]:
    """One key a role, and lives that commands renew as they go."""
    from executor.trust.repository import SINGLE_DAYS, rule

    return {role: rule((key.public,), role, SINGLE_DAYS, 1) for role, key in keys.items()}


@trust.command("init")
@click.option("--environment", help="What it is for; else executor.toml's.")
@click.option("--policy-file", type=click.Path(path_type=Path), help=f"Else {POLICY_FILE}.")
@_rule_options
@_signing_options
def init(environment: str | None, policy_file: Path | None, keys: tuple[Path, ...],
         folder: Path | None, offline: bool, thresholds: tuple[str, ...],  # noqa: FBT001
         days: tuple[str, ...], **options: Any) -> None:  # fmt: skip
    """Make a repository of signed trust for the policy in policy.toml.

    Name the public keys of each role, two or three for root and policy; without any, keys are
    made here, for one operator. Then each signer runs executor trust sign.

    Example: executor trust init --root a.pub --root b.pub --targets a.pub …
    """
    from executor.trust.repository import DAYS, rule

    config = state().config(bootstrap=True)
    named, secrets = _keys(options), secrets_of(config, keys) if keys else []
    policy = read_file(policy_file or config.folder / POLICY_FILE)
    repository = changing(config, folder, new=True)
    if repository.made:
        raise ExecutorError("config.invalid", f"`{repository.folder}` has a repository",
                            hint="change its keys with executor trust rotate")  # fmt: skip
    if not named:
        made = local_keys(_keys_folder(config))
        rules, secrets = single_rules(made), list(made.values())
    else:
        if missing := [who for who, (role, *_) in _WHO.items() if role not in named]:
            raise click.UsageError(f"Name the keys of: {', '.join(missing)}.")
        rules = {role: rule(named[role], role, DAYS) for role in _ROLES}
    _adjust(rules, thresholds, days)
    repository.make(environment or config.text("host.environment"), rules, policy)
    _go_on(config, repository, secrets, offline=offline)


def _keys_folder(config: Config) -> Path:
    folder = config.path("trust.keys_folder")
    if folder is None:
        raise ExecutorError("config.missing", "`trust.keys_folder` is not set")
    return folder


def _adjust(rules: dict[str, Rule], thresholds: Sequence[str], days: Sequence[str]) -> None:
    for role, number in _numbers(thresholds, "threshold").items():
        rules[role] = replace(rules[role], threshold=number)
    for role, number in _numbers(days, "days").items():
        rules[role] = replace(rules[role], life_s=number * 24 * 3600)


@trust.command("sign")
@click.argument("policy", type=click.Path(path_type=Path), required=False)
@_signing_options
def sign(policy: Path | None, keys: tuple[Path, ...], folder: Path | None,
         offline: bool) -> None:  # noqa: FBT001  # fmt: skip
    """Sign what is staged; with POLICY, stage that policy first.

    What has all its signatures is put in force and pushed, if the online key is here too.

    Example: executor trust sign policy.toml
    """
    config = state().config(bootstrap=True)
    repository = changing(config, folder)
    if policy is not None:
        repository.stage_policy(read_file(policy))
    _go_on(config, repository, secrets_of(config, keys), offline=offline)


def _go_on(
    config: Config, repository: Repository, secrets: Sequence[SecretKey], *, offline: bool,
    renew: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Sign, put in force what is ready, push it, and show how far everything is.

    With `renew` nothing is signed but these roles.
    """
    added = repository.sign(secrets) if renew is None else repository.sign(secrets, renew)
    pushed = 0
    ready = repository.ready()
    if renew is not None or ready:
        try:
            repository.put_in_force(secrets)
        except ExecutorError as error:
            # All who have to have signed; somebody else holds the online key.
            if renew is not None or error.code != "trust.threshold-unmet":
                raise
            state().out.warn(f"{error.message} · {error.hint}")
        else:
            if config.signed:
                adopt(config, repository)
                if not offline:
                    pushed = run_async(push_now(config, repository), "NATS")
    _show(repository, added=added, pushed=pushed)


def _show(repository: Repository, **facts: Any) -> None:
    now_ms = time.time_ns() // 1_000_000
    rows = repository.signings()
    fields = [_fields(row) for row in rows]
    table = output.table(
        ("ROLE", "VERSION", "STATE", "SIGNED BY", "NEEDS", "ENDS"),
        [(r.role, str(r.version), "staged" if r.staged else "in force",
          ", ".join(key[:8] for key in r.by) or "nobody",
          f"{r.needs} of {', '.join(key[:8] for key in r.open)}" if r.needs else "-",
          _left(r.expires_ms - now_ms)) for r in rows],
    )  # fmt: skip
    lines = [f"{repository.environment} · {repository.folder}", table]
    if "pushed" in facts and repository.in_force:
        lines.append(f"{facts['pushed']} files pushed" if facts["pushed"] else "nothing pushed")
    state().out.data(
        {"schema": "executor.trust/1", "environment": repository.environment,
         "in_force": repository.in_force, "roles": fields, **facts},
        "\n".join(lines),
    )  # fmt: skip


def _fields(row: Signing) -> dict[str, Any]:
    return {
        "role": row.role, "version": row.version, "staged": row.staged, "signed_by": list(row.by),
        "needs": row.needs, "expires_at": output.timestamp(row.expires_ms),
    }  # fmt: skip


def _left(ms: int) -> str:
    hours = ms // 3_600_000
    if ms <= 0:
        return "expired"
    return f"in {hours // 24} d" if hours >= _HOURS_SHOWN else f"in {hours} h"


@trust.command("status")
@_option_folder
def status(folder: Path | None) -> None:
    """Show each role: its version, its signers, its end.

    Example: executor trust status
    """
    repository = repository_of(state().config(bootstrap=True), folder)
    repository.listing() if repository.in_force else repository.rules()  # or say what is missing
    _show(repository)


@trust.command("rotate")
@_rule_options
@_signing_options
def rotate(keys: tuple[Path, ...], folder: Path | None, offline: bool,  # noqa: FBT001
           thresholds: tuple[str, ...], days: tuple[str, ...], **options: Any) -> None:  # fmt: skip
    """Put other keys, thresholds or lives in place of a role's.

    The keys that are named replace all that the role had. A new root needs as many of the old
    keys as of the new.

    Example: executor trust rotate --policy a.pub --policy b.pub --threshold policy=2
    """
    config = state().config(bootstrap=True)
    repository = changing(config, folder)
    before = repository.rules()
    rules = dict(before)
    for role, public in _keys(options).items():
        # Fewer keys than have to sign are refused, not needed: that is for --threshold to say.
        rules[role] = replace(before[role], keys=public)
    _adjust(rules, thresholds, days)
    changed = {role: rule for role, rule in rules.items() if rule != before[role]}
    if not changed:
        raise click.UsageError("Name another key, threshold or life of a role.")
    repository.stage_keys(changed)
    _go_on(config, repository, secrets_of(config, keys), offline=offline)


@trust.command("revoke")
@click.argument("name")
@_signing_options
def revoke(name: str, keys: tuple[Path, ...], folder: Path | None,
           offline: bool) -> None:  # noqa: FBT001  # fmt: skip
    """Revoke NAME: a module's digest, a key id, or a .pub file.

    A signer's key leaves its roles. What policy names, and anything else, is added to
    `revoked` in policy.toml, and running executors end what holds it within two seconds of
    the push.

    Example: executor trust revoke sha256:9f2c11…
    """
    config = state().config(bootstrap=True)
    repository = changing(config, folder)
    is_key = not name.startswith("sha256:") and Path(name).is_file()
    key_id = _public(name).key_id.hex() if is_key else name
    rules = repository.rules()
    held = {
        role: tuple(key for key in rule.keys if key.key_id.hex() != key_id)
        for role, rule in rules.items()
    }
    changed = {r: replace(rules[r], keys=left) for r, left in held.items() if left != rules[r].keys}
    if changed:
        repository.stage_keys(changed)
    if not changed or _is_named(repository.policy(), key_id):
        _revoke_in_policy(config.folder / POLICY_FILE, repository, key_id)
    _go_on(config, repository, secrets_of(config, keys), offline=offline)


def _is_named(policy: bytes, key_id: str) -> bool:
    """Whether a policy gives anything to a key."""
    found = config_document.parse(policy, name=POLICY_FILE, folder=None)
    keys = {publisher.key for publisher in found.publishers}
    keys |= {executor.key for executor in found.executors}
    keys |= {party.key for party in (*found.operators, *found.submitters, *found.builders)}
    return key_id in {key.key_id.hex() for key in keys}


def _revoke_in_policy(path: Path, repository: Repository, name: str) -> None:
    """Add it to `revoked`, in the file as well, or the next signing would take it back."""
    before = repository.policy()
    if path.is_file() and read_file(path) != before:
        raise ExecutorError(
            "config.invalid", f"`{path}` is not what was signed last",
            hint=f"sign it, or restore it from the repository, then revoke again: {path}",
        )  # fmt: skip
    if name in config_document.parse(before, name=path.name, folder=None).revoked:
        return
    text = before.decode()
    listed = re.search(r"(?m)\A((?:(?!\s*\[).*\n)*?)revoked\s*=\s*\[", text)
    if listed is None:
        after = f'revoked = ["{name}"]\n{text}'
    else:
        after = f'{text[: listed.end()]}"{name}", {text[listed.end() :].lstrip()}'
    found = config_document.parse(after.encode(), name=path.name, folder=None)
    if name not in found.revoked:
        raise ExecutorError("config.invalid", f"`revoked` in {path.name} cannot be edited",
                            hint=f"add `{name}` to it and sign it")  # fmt: skip
    repository.stage_policy(after.encode())
    if path.is_file():
        write_file(path, after.encode())


@trust.command("renew")
@click.argument("roles", nargs=-1, type=click.Choice(_ROLES))
@_signing_options
def renew(roles: tuple[str, ...], keys: tuple[Path, ...], folder: Path | None,
          offline: bool) -> None:  # noqa: FBT001  # fmt: skip
    """Sign snapshot and timestamp anew, and ROLES as well.

    Run it from a timer where the online key is, at least as often as half of the shortest life.

    Example: executor trust renew
    """
    config = state().config(bootstrap=True)
    repository = changing(config, folder)
    repository.renew(roles)
    _go_on(config, repository, secrets_of(config, keys), offline=offline, renew=roles)


@trust.command("verify")
@_option_folder
def verify(folder: Path | None) -> None:
    """Check the repository as a new executor would.

    It has only the first root, and follows all that came after it.

    Example: executor trust verify
    """
    repository = repository_of(state().config(bootstrap=True), folder)
    found = repository.verify()
    parts = (
        output.count(len(found.document.tenants), "tenant"),
        output.count(len(found.releases), "release"),
    )
    _show_state("executor.trust-verified/1", found, f"ok  {' · '.join(parts)}")


def _show_state(schema: str, found: Any, text: str) -> None:
    ends = output.timestamp(found.expires_ms)
    state().out.data(
        {"schema": schema, "environment": found.environment, "expires_at": ends,
         "roles": {name: role.version for name, role in found.roles.items()},
         "releases": {"/".join(name): r.version for name, r in found.releases.items()}},
        f"{text} · {found.environment} · until {ends}",
    )  # fmt: skip


@trust.command("push")
@_option_folder
def push(folder: Path | None) -> None:
    """Write what is in force to NATS, for executors to fetch.

    Example: executor trust push
    """
    config = state().config(bootstrap=True)
    repository = repository_of(config, folder)
    repository.verify()
    count = run_async(push_now(config, repository), "NATS")
    _show(repository, pushed=count)


@trust.command("refresh")
def refresh() -> None:
    """Fetch from NATS and verify what this host believes.

    Example: executor trust refresh
    """
    config = state().config(required=True, bootstrap=True)
    if not config.signed:
        raise ExecutorError("config.invalid", '`trust.source` is "file": nothing to fetch',
                            hint='set it to "tuf"')  # fmt: skip

    async def main() -> Any:
        # Whatever login is here: everybody may fetch what they verify themselves.
        own = f"executor_{config.text('host.name')}"
        how = settings(config, "executor-trust", "trust_", own, "publisher_", "operator_",
                       "client_", "reader_", "submitter_")  # fmt: skip
        connection = await Connection.open(how, lambda _name, _facts: None)
        try:
            return await fetch_and_verify(config, connection)
        finally:
            await connection.close()

    _show_state("executor.trust-verified/1", run_async(main(), "NATS"), "ok  believed from now on")


VERBS = (trust,)
