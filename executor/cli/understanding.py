"""Verbs that explain: doctor, explain, config."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from executor.cli import local, output
from executor.cli.base import Family, Verb, run_async, state
from executor.cli.serving import queue, settings, stream_options
from executor.config import KEYS, Config
from executor.core.layers import CANARIES, LAYERS, REQUIRED
from executor.core.manifest import Manifest, append
from executor.errors import TABLE, ExecutorError
from executor.model import MIB
from executor.supervisor import containment
from executor.supervisor.service import new_zygote
from executor.telemetry import Log, Telemetry
from executor.transport import streams
from executor.transport.connection import Connection
from executor.transport.server import find_binary

# (module (memory (export "memory") 1) (func (export "run") (result i32) i32.const 0))
_PROBE: Final = bytes.fromhex(
    "0061736d010000000105016000017f030201000503010001071002066d656d6f7279020003"
    "72756e00000a0601040041000b"
)
_OPTIONAL: Final = "what it stops is stopped by the filter as well; see SECURITY.md"
_REQUIRED: Final = (
    "use a newer kernel or a wider container profile, or accept it: "
    'sandbox.containment = "best-effort"'
)
_SLOW: Final = "the raw path does not know this engine; the public one does the same, slower"
_PACKAGES: Final = ("wasmtime", "nats-py", "cryptography", "msgpack", "opentelemetry-sdk", "click")


@dataclass(frozen=True, slots=True)
class _Finding:
    state: str  # ok, warn, fail
    what: str
    hint: str = ""
    code: str = ""


def _complete_code(_context: click.Context, _parameter: click.Parameter, incomplete: str
                   ) -> list[CompletionItem]:  # fmt: skip
    return [CompletionItem(code, help=row.message) for code, row in TABLE.items()
            if code.startswith(incomplete)]  # fmt: skip


@click.command("explain", cls=Verb)
@click.argument("code", shell_complete=_complete_code, required=False)
def explain(code: str | None) -> None:
    """Say what CODE means and how to mend it, or list all.

    Example: executor explain limit.deadline-exceeded
    """
    out = state().out
    if code is None:
        rows = [(r.code, r.klass.value, r.who, str(r.exit), r.message) for r in TABLE.values()]
        out.data({"schema": "executor.codes/1", "codes": [_row(c) for c in TABLE]},
                 output.table(("CODE", "CLASS", "WHO", "EXIT", "MEANS"), rows))  # fmt: skip
        return
    row = TABLE.get(code)
    if row is None:
        import difflib  # only on this path

        near = difflib.get_close_matches(code, list(TABLE), n=1)
        hint = f" Did you mean `{near[0]}`?" if near else " `executor explain` lists all."
        raise click.UsageError(f"There is no code `{code}`.{hint}")
    sentence = row.message[0].upper() + row.message[1:]
    out.data(
        {"schema": "executor.code/1", **_row(code)},
        f"{sentence}.    {row.klass} · fix: {row.who} · exit {row.exit}\n{row.hint}",
    )


def _row(code: str) -> dict[str, Any]:
    row = TABLE[code]
    return {"code": code, "class": row.klass.value, "who": row.who, "exit": row.exit,
            "message": row.message, "hint": row.hint}  # fmt: skip


@click.group("config", cls=Family)
def config() -> None:
    """Show and check executor.toml."""


@config.command("show")
def show() -> None:
    """Print every setting, its value and where it comes from.

    Example: executor config show
    """
    loaded = state().config(bootstrap=True)
    rows = [(name, output.number(v) if type(v) is int else _shown(v), loaded.sources[name],
             KEYS[name.partition(".")[0]][name.partition(".")[2]].why)
            for name, v in loaded.values.items()]  # fmt: skip
    state().out.data(
        {"schema": "executor.config/1", "values": dict(loaded.values),
         "sources": dict(loaded.sources)},
        output.table(("KEY", "VALUE", "FROM", "WHY THIS DEFAULT"), rows),
    )  # fmt: skip


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value) if value != "" else "unset"


@config.command("check")
def check() -> None:
    """Report every error in executor.toml at once.

    Example: executor config check
    """
    loaded = state().config(required=True)
    state().out.data(
        {"schema": "executor.config/1", "ok": True},
        f"ok  {_sizes(loaded)}",
    )


def _sizes(loaded: Config) -> str:
    counts = {"tenant": loaded.policy.tenants, "grant": loaded.policy.grants,
              "publisher": loaded.publishers, "executor": loaded.executors}  # fmt: skip
    return " · ".join(output.count(len(found), noun) for noun, found in counts.items())


@click.command("doctor", cls=Verb)
def doctor() -> None:
    """Check versions, sandbox, configuration, NATS and its streams.

    Its exit code is that of the first failure.

    Example: executor doctor
    """
    findings = run_async(_examine(), "the sandbox and NATS")
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    lines = [
        f"{click.style(f'{f.state:<4}', fg=colours[f.state])}  {f.what}"
        + (f"\n      hint: {f.hint}" if f.hint else "")
        for f in findings
    ]
    shell = 'eval "$(_EXECUTOR_COMPLETE=bash_source executor)"'
    state().out.data(
        {"schema": "executor.doctor/1", "findings": [
            {"state": f.state, "what": f.what, "hint": f.hint, "code": f.code or None}
            for f in findings
        ]},
        "\n".join(lines) + f"\n\ncompletion of verbs and codes: {shell}",
    )  # fmt: skip
    failed = next((f for f in findings if f.state == "fail"), None)
    if failed is not None:
        raise SystemExit(TABLE[failed.code].exit)


async def _examine() -> list[_Finding]:
    findings = [_versions()]
    try:
        loaded = state().config()
    except ExecutorError as error:
        return [*findings, _failed("configuration", error)]
    where = loaded.folder / "executor.toml"
    if where.is_file() or state().config_path:
        findings.append(_Finding("ok", f"configuration: {_sizes(loaded)}"))
    else:
        findings.append(_Finding("warn", "no executor.toml here", "executor init"))
    findings += await _containment(loaded)
    findings.append(await _check("sandbox", _sandbox(loaded)))
    try:
        findings.append(_Finding("ok", f"nats-server for demo and serve --embedded: "
                                 f"{find_binary().rpartition('/')[2]}"))  # fmt: skip
    except ExecutorError as error:
        findings.append(_Finding("warn", error.message, error.hint))
    findings.append(await _check("NATS", _nats(loaded)))
    return findings


def _versions() -> _Finding:
    names = [f"python {platform.python_version()}"]
    names += [f"{package} {importlib.metadata.version(package)}" for package in _PACKAGES]
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    if sys.platform != "linux":
        return _Finding("fail", f"{system}: sandboxes need Linux", "run it on Linux",
                        "sandbox.containment-missing")  # fmt: skip
    return _Finding("ok", " · ".join([*names, system]))


def _failed(what: str, error: ExecutorError) -> _Finding:
    return _Finding("fail", f"{what}: {error.message} [{error.code}]", error.hint, error.code)


async def _check(what: str, probe: Coroutine[Any, Any, str]) -> _Finding:
    try:
        return _Finding("ok", await probe)
    except ExecutorError as error:
        return _failed(what, error)


async def _containment(loaded: Config) -> list[_Finding]:
    """Each layer of the jail: there, missing, or missing where that stops all work."""
    # Best effort, to see all that is missing; what the configuration makes of it is said below.
    zygote = new_zygote(loaded.with_values(sandbox__containment="best-effort"))
    try:
        found = await containment.examine(zygote)
    except ExecutorError as error:
        return [_failed("jail", error)]
    finally:
        await zygote.close()
    accepted = loaded.text("sandbox.containment") == "best-effort"
    findings = []
    for name, what in LAYERS.items():
        if name in found.layers:
            findings.append(_Finding("ok", f"layer {name}: {what}"))
        elif name not in REQUIRED or accepted:
            findings.append(_Finding("warn", f"layer {name} is missing: {what}", _OPTIONAL))
        else:
            findings.append(_Finding("fail", f"layer {name} is missing: {what}", _REQUIRED,
                                     "sandbox.containment-missing"))  # fmt: skip
    if found.escaped:
        names = ", ".join(found.escaped)
        findings.append(_Finding("warn" if accepted else "fail", f"attacks that passed: {names}",
                                 _REQUIRED, "sandbox.containment-missing"))  # fmt: skip
    else:
        findings.append(_Finding("ok", f"attacks tried and refused: {', '.join(CANARIES)}"))
    slow = found.path == "public" != loaded.text("sandbox.engine_path")
    findings.append(_Finding("warn" if slow else "ok", f"attempts take the {found.path} path",
                             _SLOW if slow else ""))  # fmt: skip
    return findings


async def _sandbox(loaded: Config) -> str:
    """Compile and run a module that does nothing, as any task would be."""
    module = append(_PROBE, Manifest(task="probe", version="1"))
    begin = time.monotonic()
    ran = await local.run(loaded, local.Order(module, b"", allow=()), Telemetry(Log(quiet=True)))
    took = (time.monotonic() - begin) * 1000
    if ran.record.code:
        raise ExecutorError(ran.record.code, ran.record.message, hint=ran.record.hint)
    used = ran.record.receipt
    return (f"a sandbox compiled, started, proved its jail and ran a module in {took:.0f} ms · "
            f"containment {used.containment} · {used.engine}")  # fmt: skip


async def _nats(loaded: Config) -> str:
    connection = await Connection.open(
        settings(loaded, "executor-doctor", "deployer_", "operator_"), lambda _n, _f: None
    )
    try:
        if connection.max_payload < MIB:
            raise ExecutorError(
                "transport.stream-mismatch", f"max_payload is {connection.max_payload} bytes",
                hint="set max_payload to 1MB in the NATS server's configuration",
            )  # fmt: skip
        queues = [queue(tenant) for tenant in loaded.policy.tenants]
        await streams.check(connection, queues, stream_options(loaded))
        return (f"nats-server {connection.server_version} at {connection.settings.public_url()} · "
                f"streams of {output.count(len(queues), 'tenant')} as needed")  # fmt: skip
    finally:
        await connection.close()


VERBS = (doctor, explain, config)
