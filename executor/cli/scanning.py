"""The verb `scan`: what is in a module that should not be published, for people and for gates."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from executor.cli.base import Verb, read_file, run_async, state
from executor.cli.modules import wanted
from executor.cli.output import number
from executor.config import Config
from executor.core import manifest, policy, scan, signature, wasm
from executor.core.complexity import STANDARD
from executor.errors import TABLE, ExecutorError
from executor.supervisor.compiling import Product
from executor.supervisor.service import new_compiler, new_zygote
from executor.telemetry import escape

_EXIT: Final = TABLE["module.invalid"].exit  # of every `module.*`
_FEATURES: Final = "target_features"
_FEATURES_MAX: Final = 64


async def _compiled(config: Config, data: bytes) -> Product:
    zygote = new_zygote(config)
    try:
        return await new_compiler(config, zygote).compile(
            data, tenant="", memory_max=config.policy.limits.memory_bytes,
            large=len(data) > STANDARD.module_bytes,
        )  # fmt: skip
    finally:
        await zygote.close()


def _features(data: bytes) -> list[str]:
    """What the toolchain says that the module uses; what cannot be read is left out."""
    section = next((s for s in wasm.sections(data) if s.name == _FEATURES), None)
    if section is None:
        return []
    found: list[str] = []
    try:
        count, at = wasm.read_uleb(data, section.payload, minimal=False)
        for _ in range(min(count, _FEATURES_MAX)):
            size, start = wasm.read_uleb(data, at + 1, minimal=False)  # behind the prefix, `+`
            at = start + size
            if at > section.end:
                break
            found.append(escape(data[start:at].decode("ascii", "replace"), most=64))
    except ExecutorError:
        pass
    return found


def _row(code: str, text: str, where: str = "", *, grave: bool = True) -> dict[str, Any]:
    return {"kind": code, "where": where, "text": text, "grave": grave}


def _admission(config: Config, data: bytes, info: dict[str, Any]) -> list[dict[str, Any]]:
    """What would keep it from being admitted, signature and grants aside."""
    found = []
    try:
        described = manifest.read(data)
        info["task"], info["version"] = described.task, described.version
        declared = {want.capability for want in described.wants}
        info["wants"] = sorted(declared)
    except ExecutorError as error:
        found.append(_row(error.code, error.message))
        declared = None
    try:
        product = run_async(_compiled(config, data), "the compiler")
        info["imports"] = [f"{module}.{name}" for module, name, _ in product.imports]
        policy.check_abi(product.imports, product.exports)
    except ExecutorError as error:
        found.append(_row(error.code, error.message, "import"))
        return found
    if declared is not None:
        used = wanted(product).keys()
        found += [_row("undeclared import", name, "import") for name in sorted(used - declared)]
        found += [
            _row("unused want", name, manifest.SECTION, grave=False)
            for name in sorted(declared - used)
        ]
    return found


@click.command("scan", cls=Verb)
@click.argument("module", type=click.Path(path_type=Path))
def scan_verb(module: Path) -> int:
    """Look for secrets and forbidden imports in MODULE.

    Exits with 10 if there is a reason not to publish it. What was found is named by kind
    and place and never shown. A note is no reason. That nothing was found proves nothing.

    Example: executor scan hello.wasm
    """
    config, data = state().config(), read_file(module)
    info: dict[str, Any] = {
        "schema": "executor.scan/1", "file": str(module), "digest": signature.digest(data),
        "size": len(data), "signatures": 0, "imports": [], "wants": [],
    }  # fmt: skip
    found = [_row(f.kind, f"at byte {f.offset}", f.where, grave=f.grave) for f in scan.scan(data)]
    info["sections"] = [
        [s.name or scan.SECTION_NAMES.get(s.id, str(s.id)), s.end - s.start]
        for s in wasm.sections(data)
    ]
    info["features"] = _features(data)
    try:
        info["signatures"] = len(signature.signers(data))
    except ExecutorError as error:
        found.append(_row(error.code, error.message, signature.SECTION))
    found += _admission(config, data, info)
    if len(data) > STANDARD.module_bytes:
        found.append(_row("large", f"{number(len(data))} bytes: its signer must be `large`",
                          grave=False))  # fmt: skip
    info["findings"] = found
    state().out.data(info, _text(info))
    return _EXIT if any(finding["grave"] for finding in found) else 0


def _text(info: dict[str, Any]) -> str:
    sections = ", ".join(f"{escape(name)} {number(size)}" for name, size in info["sections"])
    lines = [
        f"module    {info['digest']} · {number(info['size'])} bytes",
        f"sections  {sections}",
        f"imports   {', '.join(map(escape, info['imports'])) or 'none'}",
        f"wants     {', '.join(info['wants']) or 'nothing'}",
        f"features  {', '.join(info['features']) or 'not said'}",
        f"signed    by {info['signatures']}",
    ]
    for finding in info["findings"]:
        word = "finding" if finding["grave"] else "note"
        where = f" in `{escape(finding['where'])}`" if finding["where"] else ""
        lines.append(f"{word:<9} {finding['kind']}{where}: {escape(finding['text'])}")
    grave = sum(finding["grave"] for finding in info["findings"])
    lines.append(f"{grave} findings, {len(info['findings']) - grave} notes")
    return "\n".join(lines)


VERBS = (scan_verb,)
