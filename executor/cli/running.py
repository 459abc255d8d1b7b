"""The verb `run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from executor.cli import local, output
from executor.cli.base import Verb, read_file, read_input, run_async, state, with_input
from executor.core import abi, manifest
from executor.errors import ExecutorError
from executor.model import MIB
from executor.telemetry import Log, Telemetry

# Stages that judge a module or the host before any of its code runs.
_REFUSALS = frozenset({"module", "policy", "message", "sandbox", "config", "internal"})


@click.command("run", cls=Verb)
@click.argument("module", type=click.Path(path_type=Path))
@with_input
@click.option(
    "--allow",
    multiple=True,
    metavar="CAP",
    default=("log",),
    show_default=True,
    help="Grant log, clock, random or kv[=PREFIX[:read]]; repeatable.",
)
@click.option(
    "--kv",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="Put it into the bucket first; grants kv.",
)
@click.option("--fuel", type=click.IntRange(1), help="Lower the fuel.")
@click.option("--memory-mib", type=click.IntRange(1), help="Lower the memory cap.")
@click.option("--deadline-ms", type=click.IntRange(1), help="Lower the deadline.")
def run(module: Path, text: str | None, kind: str, allow: tuple[str, ...], pairs: tuple[str, ...],
        fuel: int | None, memory_mib: int | None, deadline_ms: int | None) -> None:  # fmt: skip
    """Run MODULE once, here, without NATS.

    Sandbox, caps, grants and settlement are those of `serve`. The guest's log and what the
    run used go to stderr.

    Example: executor run tasks_wasm/wordcount/wordcount.wasm -i "one two two"
    """
    data, content_type = read_input(text, kind)
    lowered: dict[str, int] = {}
    if fuel is not None:
        lowered["fuel"] = fuel
    if memory_mib is not None:
        lowered["memory_bytes"] = memory_mib * MIB
    if deadline_ms is not None:
        lowered["deadline_ms"] = deadline_ms
    config = state().config(bootstrap=True)
    order = local.Order(
        module=read_file(module), input=data, content_type=content_type, allow=allow,
        kv=_pairs(pairs) if pairs else None, lowered=tuple(lowered.items()),
    )  # fmt: skip
    telemetry = Telemetry(Log(quiet=not state().out.verbose))
    ran = run_async(local.run(config, order, telemetry), f"`{module}`")
    _show(ran, order, config.policy.limits.lowered(lowered).fuel)


def _pairs(pairs: tuple[str, ...]) -> dict[str, bytes]:
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"`--kv {pair}` is not KEY=VALUE.")
        values[key] = value.encode("utf-8", "surrogateescape")
    return values


def _fields(ran: local.Ran) -> dict[str, Any]:
    record = ran.record
    fields: dict[str, Any] = {
        "schema": "executor.run/1", "outcome": "failure" if record.code else "result",
        "code": record.code or None, "task": ran.task, "version": ran.version,
        "digest": ran.digest, "output": None, "logs": output.log_fields(ran.logs),
        "receipt": {n: getattr(record.receipt, n) for n in record.receipt.__dataclass_fields__},
    }  # fmt: skip
    # The receipt names the module as it ran here, under this run's own signature.
    fields["receipt"]["digest"] = ran.digest
    if record.code:
        fields |= {"message": output.failure_text(record.code, record.message),
                   "hint": record.hint, "facts": dict(record.facts)}  # fmt: skip
        return fields
    return fields | output.content(record.output, record.content_type)


def _hint(ran: local.Ran, order: local.Order) -> str:
    """The record's hint; for a refused capability, first how to allow it on this command line."""
    if ran.record.code != "policy.capability-denied":
        return ran.record.hint
    wants = {want.capability for want in manifest.read(order.module).wants}
    given = {text.partition("=")[0] for text in order.allow}
    missing = [n for n, full in abi.SHORT_NAMES.items() if full in wants and n not in given]
    flags = " ".join(f"--allow {name}" for name in missing or ["kv"])
    lines = ran.record.hint.replace(f" of tenant `{local.TENANT}`", "")
    return f"here {flags}; for `serve` {lines}"


def _show(ran: local.Ran, order: local.Order, fuel_max: int) -> None:
    out, record = state().out, ran.record
    for level, text in ran.logs:
        out.say(output.log_line(level, text))
    if record.receipt.log_dropped:
        out.say(f"log        {output.count(record.receipt.log_dropped, 'more line')} dropped")
    if record.code:
        error = ExecutorError(
            record.code, record.message, hint=_hint(ran, order), **dict(record.facts)
        )
        if error.row.stage in _REFUSALS or not out.as_json:
            raise error
        out.data(_fields(ran), "")
        raise SystemExit(error.row.exit)
    if out.as_json:
        out.data(_fields(ran), "")
        return
    out.raw(record.output)
    used = record.receipt
    out.say(
        f"ok  {ran.task}  fuel {output.number(used.fuel_used)} of {output.number(fuel_max)} · "
        f"memory {output.size(used.memory_peak_bytes)} · guest {used.guest_us / 1000:.1f} ms, "
        f"host {used.host_us / 1000:.1f} ms · containment {used.containment}"
    )


VERBS = (run,)
