"""The list of what is inside: CycloneDX JSON, from what is installed, the same bytes each time."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Mapping
from typing import Any, Final

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from supply import installed
from supply.installed import Package

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)  # nothing in it depends on the time


def _component(name: str, version: str, licence: str, kind: ComponentType) -> Component:
    purl = PackageURL("pypi", None, name, version)
    return Component(
        name=name, version=version, type=kind, purl=purl, bom_ref=purl.to_string(),
        licenses=[DisjunctiveLicense(name=licence)] if licence else [],
    )  # fmt: skip


def make(packages: Mapping[str, Package], roots: list[str], version: str) -> str:
    """The document about `packages`, which the project needs through `roots`."""
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"{installed.PROJECT}@{version}"))
    bom.metadata.timestamp = _EPOCH
    bom.metadata.component = _component(
        installed.PROJECT, version, "Apache-2.0", ComponentType.APPLICATION
    )
    made = {
        p.name: _component(p.name, p.version, p.licence, ComponentType.LIBRARY)
        for p in packages.values()
    }
    for component in made.values():
        bom.components.add(component)
    bom.register_dependency(bom.metadata.component, [made[r] for r in roots if r in made])
    for package in packages.values():
        bom.register_dependency(made[package.name], [made[n] for n in package.needs if n in made])
    outputter = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    return outputter.output_as_string(indent=1) + "\n"


def versions(document: str) -> dict[str, str]:
    """The components of a document, by name."""
    parsed: dict[str, Any] = json.loads(document)
    return {each["name"]: each["version"] for each in parsed.get("components", [])}


def diff(before: str, after: str) -> list[str]:
    """What came, went or changed its version, a line each."""
    old, new = versions(before), versions(after)
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            lines.append(f"+ {name} {new[name]}")
        elif name not in new:
            lines.append(f"- {name} {old[name]}")
        elif old[name] != new[name]:
            lines.append(f"~ {name} {old[name]} → {new[name]}")
    return lines
