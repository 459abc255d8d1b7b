"""The verb `build`: the guest SDK's driver, then the task's sample in a sandbox."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click

from executor import __version__
from executor.cli import local
from executor.cli.base import Verb, read_file, read_input, run_async, state, write_file
from executor.cli.modules import examine, read_key, wanted
from executor.cli.output import log_line, number, safe_text, size, used
from executor.config import Config
from executor.core import abi, content, manifest, policy, provenance, signature
from executor.core.provenance import Build
from executor.errors import ExecutorError
from executor.telemetry import Log, Telemetry, escape

_BUILD_S: Final = 300  # a first C build compiles the toolchain's own runtime
_SHOWN_MAX: Final = 200  # of what a sample gave instead


@dataclass(frozen=True, slots=True)
class _Sample:
    """The `[sample]` of a task.toml that the driver has accepted."""

    input: bytes
    expected: bytes | None
    outcome: str  # an error's code, "" for a result
    file: str  # where `expected` stands


def build_module(folder: Path, out: Path, *, twice: bool = False) -> dict[str, Any]:
    """Run the guest SDK's driver for one folder, as a process of its own.

    `twice` builds a second time, elsewhere, and refuses what differs.

    Errors  `config.*` and `module.*` as the driver says.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-m", "guest_sdk.build", str(folder.resolve()),
         "--out", str(out.resolve()), "--json", *(["--twice"] if twice else [])],
        capture_output=True, timeout=_BUILD_S, check=False,
    )  # fmt: skip
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise ExecutorError(
            "module.invalid", "the build driver gave no answer",
            said=done.stderr.decode("utf-8", "replace")[-500:].strip(),
        ) from None  # fmt: skip
    if "error" in answer:
        raise _refused(answer["error"], folder)
    for note in done.stderr.decode("utf-8", "replace").splitlines():
        state().out.say(safe_text(note.encode()))
    return answer


def _refused(fault: dict[str, str], folder: Path) -> ExecutorError:
    code, detail = fault["code"], fault.get("detail", "").strip()
    hint = fault.get("hint", "")
    if code == "config.invalid":
        hint = hint or f"mend {folder / 'task.toml'}; guest_sdk/README.md says what it may hold"
    if "\n" not in detail:
        return ExecutorError(code, detail, hint=hint)
    if code == "module.invalid":
        hint = hint or "mend what the compiler names"
        return ExecutorError(code, "it does not compile", hint=hint, compiler=detail[-2000:])
    return ExecutorError(code, hint=hint, said=detail[-2000:])


def _sample(folder: Path) -> _Sample | None:
    """What task.toml says of its sample; the driver has checked its types and files."""
    table = tomllib.loads(read_file(folder / "task.toml").decode()).get("sample")
    if not table:
        return None
    name, outcome = table.get("output", ""), table.get("outcome", "")
    data, _ = read_input(f"@{folder / table['input']}" if table.get("input") else "", "raw")
    return _Sample(data, read_file(folder / name) if name else None, outcome, name)


async def _attempt(config: Config, data: bytes, sample: _Sample) -> local.Ran:
    """Run the sample with all that the module wants, twice where it asks for another attempt."""
    described = manifest.read(data)
    names = {full: short for short, full in abi.SHORT_NAMES.items()}
    allow = tuple(names[w.capability] for w in described.wants if w.capability in names)
    if sample.outcome == "policy.capability-denied":
        allow = ()
    order = local.Order(data, sample.input, described.input or content.RAW, allow)
    telemetry = Telemetry(Log(quiet=True))
    ran = await local.run(config, order, telemetry)
    if ran.transient:
        ran = await local.run(config, replace(order, kv=ran.kv), telemetry)
    return ran


def _run_sample(config: Config, folder: Path, data: bytes) -> dict[str, Any] | None:
    """What the sample used and gave, as fields for `--json`; None when there is none.

    Errors  the sample's own, when it promised a result; `config.invalid` when it promised
    something else than it gave.
    """
    sample = _sample(folder)
    if sample is None:
        return None
    ran = run_async(_attempt(config, data, sample), "the sample")
    fault = _fault(ran, sample)
    if fault is not None:
        for line in ran.logs:
            state().out.say(log_line(*line))
        raise fault
    receipt = ran.record.receipt
    outcome = ran.record.code or "result"
    return {
        "outcome": outcome, "compared": sample.file or None,
        "fuel_used": receipt.fuel_used, "memory_peak_bytes": receipt.memory_peak_bytes,
        "guest_us": receipt.guest_us, "host_us": receipt.host_us,
        "text": f"{outcome} · {used(receipt)}" + (f" · as in {sample.file}" if sample.file else ""),
    }  # fmt: skip


def _fault(ran: local.Ran, sample: _Sample) -> ExecutorError | None:
    record = ran.record
    if record.code and not sample.outcome:
        return ExecutorError(
            record.code, f"in the task's sample: {record.message}".removesuffix(": "),
            hint=f"{record.hint}; --no-sample builds without running it", **dict(record.facts),
        )  # fmt: skip
    if record.code != sample.outcome:
        expected, given = sample.outcome, record.code or _shown(record.output)
    elif sample.expected is not None and record.output != sample.expected:
        expected, given = _shown(sample.expected), _shown(record.output)
    else:
        return None
    return ExecutorError(
        "config.invalid", f"the sample of `{ran.task}` does not give what task.toml says",
        hint="mend the task or its [sample]; --no-sample builds without running it",
        expected=expected, given=given,
    )  # fmt: skip


def _shown(data: bytes) -> str:
    return escape(data.decode("utf-8", "replace"), most=_SHOWN_MAX)  # one line, with its \\n


@click.command("build", cls=Verb)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Default: FOLDER/TASK.wasm.",
)
@click.option("--verify", "twice", is_flag=True, help="Build twice, elsewhere, and compare.")
@click.option(
    "--key", type=click.Path(path_type=Path), metavar="FILE", help="Sign it with this .key file."
)
@click.option(
    "--builder-key", type=click.Path(path_type=Path), metavar="FILE",
    help="Say who built it from what: FILE.provenance.json, signed by this .key file.",
)  # fmt: skip
@click.option("--no-sample", is_flag=True, help="Do not run the task's sample.")
def build(
    folder: Path, out: Path | None, twice: bool, key: Path | None,  # noqa: FBT001
    builder_key: Path | None, no_sample: bool,  # noqa: FBT001
) -> None:  # fmt: skip
    """Build the task in FOLDER and run its sample.

    FOLDER holds task.toml and a source. A sample that fails, or gives other bytes than
    task.toml promises, is an error, and no module is written.

    Example: executor build hello --key keys/author.key
    """
    config = state().config(bootstrap=True)
    secret = read_key(key, ask=True) if key else None
    builder = read_key(builder_key, ask=True) if builder_key else None
    if not folder.is_dir():
        raise ExecutorError("config.missing", f"no folder `{folder}`", hint="check the path")
    with tempfile.TemporaryDirectory() as temporary:
        first = Path(temporary) / "first.wasm"
        state().out.say(f"building {folder} …")
        answer = build_module(folder, first, twice=twice)
        data = first.read_bytes()
    described, product = run_async(examine(config, data), "the compiler")
    sample = None if no_sample else _run_sample(config, folder, data)
    statement = provenance.sign(_facts(data, answer), builder) if builder else None
    if secret is not None:
        data = signature.sign_module(data, secret)
    target = out or folder / f"{described.task}.wasm"
    write_file(target, data)
    said = target.with_name(target.name + provenance.SUFFIX)
    if statement is not None:
        write_file(said, statement)
    capabilities = wanted(product)
    lines = [policy.grant_line(c, f) for c, f in sorted(capabilities.items())]
    ran = sample.pop("text") if sample else "not run" if no_sample else "none in task.toml"
    state().out.data(
        {"schema": "executor.built/1", "file": str(target), "digest": signature.digest(data),
         "size": len(data), "task": described.task, "version": described.version,
         "language": answer["language"], "toolchain": answer["toolchain"],
         "wants": capabilities, "grant": lines, "memory_min": product.memory_min,
         "sample": sample, "signed": secret is not None, "reproduced": twice,
         "content_digest": signature.content_digest(data),
         "provenance": str(said) if statement else None},
        f"{target} · {number(len(data))} bytes · starts with {size(product.memory_min)}\n"
        f"{signature.digest(data)}"
        + ("\nbuilt twice, the same bytes" if twice else "")
        + (f"\nbuilt by  {builder.public.key_id.hex()} → {said}" if builder else "")
        + f"\nsample    {ran}"
        + (f"\ngrant     {'; '.join(lines)}" if lines else ""),
    )  # fmt: skip


def _facts(data: bytes, answer: dict[str, Any]) -> Build:
    """What the driver said, for the builder's statement; its tool is `package version`."""
    tool, _, version = answer["toolchain"].partition(" ")
    return Build(
        signature.content_digest(data), answer["task"], answer["version"], answer["language"],
        tuple(answer["sources"].items()),
        ((tool, version), ("wasm-task-executor", __version__)),
    )  # fmt: skip


VERBS = (build,)
