"""The tables that grant, as one value: from `executor.toml`, or from a policy file that is signed.

Both have the same grammar: [[tenant]], [[grant]], [[publisher]], [[executor]], [[operator]],
[[submitter]], [[role]], [[binding]], [[builder]], [[requirement]], and what is revoked, which is
under [trust] in the one and at the top of the other.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from executor import config_tables
from executor.config_tables import Reader
from executor.core.access import (
    BUILT_IN,
    Access,
    Binding,
    Party,
    of_key,
    of_publisher,
    of_roles,
    of_tenant,
)
from executor.core.policy import Grant, Policy, Publisher, Requirement, Tenant, is_wider
from executor.core.seal import ExecutorKey
from executor.core.signature import PublicKey
from executor.errors import ExecutorError

TABLES: Final = (
    "tenant", "grant", "publisher", "executor", "operator", "submitter", "role", "binding",
    "builder", "requirement",
)  # fmt: skip
# Of a policy file: all that a signer reads before signing it.
BYTES_MAX: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Document:
    """Everything that grants; `access` has the tenants' own roles too."""

    tenants: tuple[Tenant, ...] = ()
    grants: tuple[Grant, ...] = ()
    publishers: tuple[Publisher, ...] = ()
    executors: tuple[ExecutorKey, ...] = ()
    operators: tuple[Party, ...] = ()
    submitters: tuple[Party, ...] = ()
    builders: tuple[Party, ...] = ()  # whose statements of provenance count
    requirements: tuple[Requirement, ...] = ()
    access: Access = field(default_factory=Access)
    revoked: frozenset[str] = frozenset()

    @property
    def grants_anything(self) -> bool:
        """Whether there is a table of it at all."""
        tables = (
            self.tenants,
            self.grants,
            self.publishers,
            self.executors,
            self.operators,
            self.submitters,
            self.builders,
            self.requirements,
            self.access.bindings,
            self.revoked,
        )
        return any(tables)


def parse(text: bytes, *, name: str, folder: Path | None) -> Document:
    """A policy file, whole or not at all; without `folder` it may name no other files.

    Errors  `config.*`, all of them in one message.
    """
    if len(text) > BYTES_MAX:
        raise ExecutorError("config.invalid", f"{name}: above {BYTES_MAX} bytes")
    try:
        decoded = text.decode()
        document = tomllib.loads(decoded)
    except (ValueError, RecursionError) as error:
        raise ExecutorError("config.invalid", f"{name}: {error}") from error
    reader = Reader(decoded, name, folder)
    for section in sorted(document.keys() - {*TABLES, "revoked"}):
        reader.unknown("", section, [*TABLES, "revoked"], reader.where(section))
    document["trust"] = {"revoked": document.pop("revoked", [])}
    read_document = read(reader, document)
    reader.finish()
    return read_document


def read(reader: Reader, document: dict[str, Any]) -> Document:
    """The tables of a file; what is wrong with them is kept by the reader."""

    def rows(section: str) -> list[Any]:
        build = getattr(config_tables, section)
        return config_tables.tables(reader, document, section, build)

    tenants: list[Tenant] = rows("tenant")
    grants: list[Grant] = rows("grant")
    publishers: list[Publisher] = rows("publisher")
    operators: list[Party] = rows("operator")
    submitters: list[Party] = rows("submitter")
    builders: list[Party] = rows("builder")
    requirements: list[Requirement] = rows("requirement")
    executors: list[ExecutorKey] = rows("executor")
    revoked: list[frozenset[str]] = rows("trust")
    for section, listed in (("executor", executors), ("operator", operators),
                            ("submitter", submitters), ("builder", builders)):  # fmt: skip
        _check_keys(reader, section, [each.key for each in listed])
    _check_tenants(reader, tenants, grants)
    _check_builders(reader, builders, requirements)
    return Document(
        tenants=tuple(tenants), grants=tuple(grants), publishers=tuple(publishers),
        executors=tuple(executors), operators=tuple(operators),
        submitters=tuple(submitters), builders=tuple(builders), requirements=tuple(requirements),
        access=_access(reader, rows("role"), rows("binding"), tenants, publishers,
                       [*operators, *submitters, *publishers]),
        revoked=frozenset().union(*revoked),
    )  # fmt: skip


def _check_tenants(reader: Reader, tenants: list[Tenant], grants: list[Grant]) -> None:
    names = [tenant.name for tenant in tenants]
    for index, tenant in enumerate(names):
        if tenant in names[:index]:
            where = reader.where("tenant", index=index)
            reader.fail("config.invalid", f"{where} is a second tenant `{tenant}`")
    granting = Policy(tenants=tuple(tenants), grants=tuple(grants))
    for index, grant in enumerate(grants):
        where = reader.where("grant", index=index)
        if grant.tenant not in names:
            reader.fail("config.invalid", f"{where} grants to unknown tenant `{grant.tenant}`")
        if is_wider(granting, grant):
            reader.fail("config.invalid", f"{where}: its fallback may do more than its own task")


def _check_keys(reader: Reader, section: str, keys: Sequence[PublicKey]) -> None:
    """A key stands once in a table: of two rows one would count, and the other's end would not."""
    known = set[PublicKey]()
    for index, key in enumerate(keys):
        if key in known:
            where = reader.where(section, index=index)
            reader.fail("config.invalid", f"{where} is a second [[{section}]] of the same key")
        known.add(key)


def _check_builders(reader: Reader, builders: list[Party], requirements: list[Requirement]) -> None:
    known = sorted({builder.name for builder in builders})
    for index, requirement in enumerate(requirements):
        for name in requirement.builders:
            if name not in known:
                reader.unknown("builder ", name, known, reader.where("requirement", index=index))


def _access(
    reader: Reader, roles: list[tuple[str, frozenset[str]]], bindings: list[Binding],
    tenants: list[Tenant], publishers: list[Publisher], parties: Iterable[Party | Publisher],
) -> Access:  # fmt: skip
    """The table of access: names of parties become principals, and what is implied is there."""
    known = dict(BUILT_IN)
    for index, (name, actions) in enumerate(roles):
        if name in known:
            where = reader.where("role", index=index)
            reader.fail("config.invalid", f"{where} is a second role `{name}`")
        known[name] = actions
    named: dict[str, set[str]] = {}
    for party in parties:
        named.setdefault(party.name, set()).add(of_key(party.key))
    for tenant in tenants:
        named[of_tenant(tenant.name)] = {of_tenant(tenant.name)}
    resolved = []
    for index, binding in enumerate(bindings):
        where = reader.where("binding", index=index)
        if binding.role not in known:
            reader.unknown("role ", binding.role, list(known), where)
            continue
        for name in sorted(binding.who - named.keys()):
            reader.unknown("party ", name, list(named), where)
        who = frozenset().union(*(named.get(name, set()) for name in binding.who))
        resolved.append(
            Binding(binding.role, who, binding.tenants, binding.tasks, binding.deny, binding.why)
        )
    for index, tenant in enumerate(tenants):
        for role in tenant.roles:
            if role not in known:
                reader.unknown("role ", role, list(known), reader.where("tenant", index=index))
                continue
            resolved += of_roles(tenant.name, [role])
    for publisher in publishers:
        resolved += of_publisher(publisher.key, publisher.tasks)
    return Access(known, tuple(resolved))
