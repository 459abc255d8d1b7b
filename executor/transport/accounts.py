"""The accounts of a nats-server: executors and streams, each tenant, each publisher, and its own.

A tenant's account imports its task subject and its direct gets as services, its stored records as
streams, and has nothing else, a publisher's what it stores and reads: the server's answers return
into the account that asked, so that none of them arrives on another's subjects. Written in two
forms: users in the server's own file, or JWTs under scoped signing keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from executor.config_document import Document
from executor.core.access import ANY, of_key, of_tenant
from executor.core.nats_roles import ROLES, Rights, rights
from executor.core.signature import PublicKey
from executor.errors import ExecutorError
from executor.transport import jwt
from executor.transport.jwt import Claims, Key

EXECUTORS: Final = "executors"
SYSTEM: Final = "system"
_GET: Final = "$JS.API.DIRECT.GET."
_OWN: Final = ("tenant", "publisher")  # whoever has an account of its own


@dataclass(frozen=True, slots=True)
class Login:
    """Somebody who may log in: `role_name`, or `role_name.label` where several are the same."""

    role: str
    name: str
    nkey: str
    label: str = ""

    @property
    def stem(self) -> str:
        """Its name in files and commands."""
        return f"{self.role}_{self.name}" + (f".{self.label}" if self.label else "")


@dataclass(frozen=True, slots=True)
class Import:
    """What a tenant's account takes from that of the executors."""

    kind: Literal["service", "stream"]
    subject: str

    @property
    def many(self) -> bool:
        """Whether one request has many answers: a batch of direct gets."""
        return self.kind == "service" and self.subject.startswith(_GET) and self.subject[-1] != ">"


@dataclass(frozen=True, slots=True)
class Account:
    """An account; a tenant's or publisher's imports, and the executors' exports exactly these."""

    name: str
    users: tuple[tuple[Login, Rights], ...]
    imports: tuple[Import, ...] = ()


def split(stem: str) -> tuple[str, str, str]:
    """(role, name, label) of a login's name. Errors  `config.invalid`."""
    head, _, label = stem.partition(".")
    role, _, name = head.partition("_")
    if role not in ROLES or not name:
        raise ExecutorError(
            "config.invalid", f"`{stem}` is no login",
            hint=f"a login is ROLE_NAME, such as client_acme; roles: {', '.join(ROLES)}",
        )  # fmt: skip
    return role, name, label


def expected(document: Document) -> list[str]:
    """The logins that a configuration needs, as `role_name`."""
    names = {
        "tenant": [tenant.name for tenant in document.tenants],
        "executor": [entry.name for entry in document.executors],
        "publisher": [entry.name for entry in document.publishers],
        "operator": [entry.name for entry in document.operators],
        "anyone": ["main"], "server": ["main"],
    }  # fmt: skip
    wanted = [
        f"{role}_{name}"
        for role, row in ROLES.items()
        if role not in {"auditor", "notary"}  # whoever has these is said by giving their key
        for name in dict.fromkeys(names[row.whose])
    ]
    return [stem for stem in wanted if _allowed(document, stem)]


def _allowed(document: Document, stem: str, at_ms: int | None = None) -> bool:
    try:
        rights_of(document, stem, at_ms=at_ms)
    except ExecutorError:
        return False
    return True


def rights_of(document: Document, stem: str, *, at_ms: int | None) -> Rights:
    """What policy lets a login do; `at_ms` None leaves validity in time out of it.

    Errors  `transport.permission-denied` for a login that policy does not know or allow.
    """
    role, name, _ = split(stem)
    row = ROLES[role]
    keys, tenants = _holder(document, role, name, at_ms)
    principals = [of_tenant(name)] if row.whose == "tenant" else [of_key(key) for key in keys]

    def may(action: str, tenant: str) -> bool:
        return any(_somewhere(document, who, action, tenant) for who in principals)

    for action in row.needs:
        if not any(may(action, tenant) for tenant in (*tenants, ANY)):
            raise _denied(stem, f"policy gives it no role with `{action}`")
    return rights(role, name, tenants, may)


def _holder(
    document: Document, role: str, name: str, at_ms: int | None
) -> tuple[list[PublicKey], list[str]]:
    """The keys and the tenants of a login's party. Errors  `transport.permission-denied`."""
    every = [tenant.name for tenant in document.tenants]

    def live(key: PublicKey, not_before: int, not_after: int) -> bool:
        in_time = at_ms is None or (not_before <= at_ms and (not not_after or at_ms <= not_after))
        return in_time and key.key_id.hex() not in document.revoked

    whose = ROLES[role].whose
    keys: list[PublicKey] = []
    tenants = every
    if whose == "tenant":
        if name not in every:
            raise _denied(f"{role}_{name}", "there is no such [[tenant]]")
        return [], [name]
    if whose == "operator":
        keys = [o.key for o in document.operators
                if o.name == name and live(o.key, o.not_before, o.not_after)]  # fmt: skip
    elif whose == "executor":
        entries = [e for e in document.executors
                   if e.name == name and live(e.key, e.not_before, e.not_after)]  # fmt: skip
        keys = [entry.key for entry in entries]
        tenants = [t for t in every if any({ANY, t} & set(entry.tenants) for entry in entries)]
    elif whose == "publisher":
        signers = [
            p
            for p in document.publishers
            if p.name == name and live(p.key, p.not_before, p.not_after)
        ]
        keys = [signer.key for signer in signers]
        of = {pattern.partition("/")[0] for signer in signers for pattern in signer.tasks}
        tenants = [t for t in every if {ANY, t} & of]
    else:
        return [], every
    if not keys:
        raise _denied(f"{role}_{name}", f"there is no valid [[{whose}]] of that name")
    return keys, tenants


def _denied(stem: str, why: str) -> ExecutorError:
    return ExecutorError(
        "transport.permission-denied", f"`{stem}`: {why}",
        hint="who may do what stands in [[binding]] and in the tenant's `roles`", login=stem,
    )  # fmt: skip


def _somewhere(document: Document, principal: str, action: str, tenant: str) -> bool:
    """Whether it may do the action to any task there: NATS knows no finer."""
    access = document.access
    tasks = frozenset({ANY}).union(*(binding.tasks for binding in access.bindings))
    return any(access.may(principal, action, tenant, task).allowed for task in tasks)


def arrange(document: Document, logins: Iterable[Login], *, at_ms: int) -> list[Account]:
    """All accounts with their users; a login that policy does not allow now is left out."""
    users: dict[str, list[tuple[Login, Rights]]] = {EXECUTORS: [], SYSTEM: []}
    imports: dict[str, tuple[Import, ...]] = {}
    names = [("tenant", tenant.name) for tenant in document.tenants]
    names += [("publisher", publisher.name) for publisher in document.publishers]
    for whose, name in dict.fromkeys(names):
        users[f"{whose}_{name}"] = []
        imports[f"{whose}_{name}"] = _imports(document, whose, name)
    for login in logins:
        if not _allowed(document, login.stem, at_ms):
            continue
        given = rights_of(document, login.stem, at_ms=at_ms)
        users[account_of(login.role, login.name)].append((login, given))
    return [Account(name, tuple(found), imports.get(name, ())) for name, found in users.items()]


def account_of(role: str, name: str) -> str:
    """The account that a login lives in."""
    where = ROLES[role].account
    return f"{where}_{name}" if where in _OWN else where


def _imports(document: Document, whose: str, name: str) -> tuple[Import, ...]:
    found: dict[Import, None] = {}
    for role, row in ROLES.items():
        if row.whose != whose or not _allowed(document, f"{role}_{name}"):
            continue
        given = rights_of(document, f"{role}_{name}", at_ms=None)
        found |= {Import("service", subject): None for subject in given.publish}
        streams = (s for s in given.subscribe if not s.startswith("_INBOX"))
        found |= {Import("stream", subject): None for subject in streams}
    return tuple(found)


def _exports(accounts: Iterable[Account]) -> dict[Import, list[str]]:
    """What the executors' account gives, and to whom."""
    given: dict[Import, list[str]] = {}
    for account in accounts:
        for each in account.imports:
            given.setdefault(each, []).append(account.name)
    return given


# The server's own file.


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens and keeps its things; `tls` has ca.pem, server.pem, server.key."""

    listen: str
    store: Path
    tls: Path | None

    def text(self) -> str:
        """The head of its file."""
        lines = [f"listen: {_quoted(self.listen)}", 'server_name: "executor-nats"',
                 f"jetstream: {{ store_dir: {_quoted(str(self.store))} }}"]  # fmt: skip
        if self.tls is not None:
            files = {"ca_file": "ca.pem", "cert_file": "server.pem", "key_file": "server.key"}
            where = [f"  {key}: {_quoted(str(self.tls / file))}" for key, file in files.items()]
            # Both sides prove who they are; 1.2 and what it brings is refused.
            lines += ["tls: {", *where, "  verify: true", '  min_version: "1.3"', "}"]
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text)


def _listed(subjects: Iterable[str]) -> str:
    return "[" + ", ".join(_quoted(subject) for subject in subjects) + "]"


def static(accounts: Iterable[Account], place: Place) -> str:
    """The whole file with users by their public keys: no JWT, no secret in it."""
    accounts = tuple(accounts)
    lines = [place.text(), f"system_account: {SYSTEM}", "accounts: {"]
    for account in accounts:
        lines.append(f"  {account.name}: {{")
        if account.name == EXECUTORS:
            lines += ["    jetstream: enabled", "    exports: ["]
            for each, takers in _exports(accounts).items():
                many = ", response_type: stream" if each.many else ""
                lines.append(f"      {{ {each.kind}: {_quoted(each.subject)}{many}, "
                             f"accounts: [{', '.join(takers)}] }}")  # fmt: skip
            lines.append("    ]")
        elif account.imports:
            lines.append("    imports: [")
            lines += [
                f"      {{ {each.kind}: {{ account: {EXECUTORS}, "
                f"subject: {_quoted(each.subject)} }} }}"
                for each in account.imports
            ]
            lines.append("    ]")
        lines.append("    users: [")
        lines += [_user(login, given) for login, given in account.users]
        lines += ["    ]", "  }"]
    return "\n".join([*lines, "}", ""])


def _user(login: Login, given: Rights) -> str:
    denied = f", deny: {_listed(given.denied)}" if given.denied else ""
    return (
        f"      # {login.stem}\n"
        f"      {{ nkey: {login.nkey}, permissions: {{\n"
        f"        publish: {{ allow: {_listed(given.publish)}{denied} }}\n"
        f"        subscribe: {{ allow: {_listed(given.subscribe)} }} }} }}"
    )


# JWTs.


@dataclass(frozen=True, slots=True)
class Signed:
    """What a server in operator mode is told: the operator, and each account by its public key."""

    operator: str
    accounts: Mapping[str, tuple[str, str]]  # public key → (name, JWT)
    system: str  # a public key

    def text(self, place: Place, resolver: Path) -> str:
        """The whole file of the server; later changes are pushed to it."""
        preload = [f"  {public}: {token}" for public, (_, token) in self.accounts.items()]
        return "\n".join([
            place.text(), f"operator: {self.operator}", f"system_account: {self.system}",
            f"resolver: {{ type: full, dir: {_quoted(str(resolver))}, allow_delete: false }}",
            "resolver_preload: {", *preload, "}", "",
        ])  # fmt: skip


def signed(
    accounts: Iterable[Account], key: Callable[[str, int], Key], *, gone: Iterable[str] = (),
    revoked: Mapping[str, int] | None = None, now: int,
) -> Signed:  # fmt: skip
    """Sign every account. `key(name, kind)` gives the key of that name, a new one the first time.

    `gone` accounts lose their users and imports; `revoked` users (public key → second) are out.
    """
    accounts, root = tuple(accounts), key("operator", jwt.OPERATOR)
    signing = key("operator-signing", jwt.OPERATOR)
    core = key(f"account_{EXECUTORS}", jwt.ACCOUNT)
    exports = [_export(each) for each in _exports(accounts)]
    tokens: dict[str, tuple[str, str]] = {}
    publics = {a.name: key(f"account_{a.name}", jwt.ACCOUNT).public for a in accounts}
    for account in accounts:
        public = publics[account.name]
        imports = [_import(core, public, each, now) for each in account.imports]
        scopes: dict[str, Claims] = {}
        for login, given in account.users:
            name = scope_name(login.role, login.name)
            scopes[name] = jwt.scope(key(name, jwt.ACCOUNT).public, login.role, given)
        stores = account.name == EXECUTORS
        tokens[public] = account.name, jwt.account(
            signing, public, account.name, now=now, scopes=scopes.values(), imports=imports,
            exports=exports if stores else (), revoked=revoked, stores=stores,
        )  # fmt: skip
    for name in gone:
        public = key(f"account_{name}", jwt.ACCOUNT).public
        tokens[public] = name, jwt.account(signing, public, name, now=now, scopes=())
    operator = jwt.operator(root, signing.public, publics[SYSTEM], now=now)
    return Signed(operator, tokens, publics[SYSTEM])


def scope_name(role: str, name: str) -> str:
    """The name of the signing key of a role's logins of that name."""
    return f"scope_{role}_{name}"


def _export(each: Import) -> Claims:
    response = {"response_type": "Stream" if each.many else "Singleton"}
    return {"name": each.subject, "subject": each.subject, "type": each.kind,
            "token_req": True,  # nosec B105 - no secret: that an import needs an activation
            **(response if each.kind == "service" else {})}  # fmt: skip


def _import(core: Key, public: str, each: Import, now: int) -> Claims:
    token = jwt.activation(core, public, each.subject, each.kind, now=now)
    return {"name": each.subject, "subject": each.subject, "account": core.public,
            "type": each.kind, "token": token}  # fmt: skip
