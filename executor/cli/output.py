"""What the command line prints: data on stdout, talk on stderr, colour never as the message.

With `--json` one object, or one per line for a stream, each with its `schema`; within a schema's
number, fields are only added.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from executor.core import abi
from executor.core.content import JSON, MSGPACK, from_msgpack
from executor.core.frames import UNRETURNED
from executor.errors import TABLE, ExecutorError
from executor.model import Receipt
from executor.telemetry import escape

_SHORT_ID: Final = 12
LEVELS: Final = ("debug", "info", "warn", "error")  # as the ABI numbers them


@dataclass
class Output:
    """Where and how to print; made once from the global options."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    color: str = "auto"

    def data(self, value: Mapping[str, Any], text: str) -> None:
        """The command's answer: an object for programs, a text for people."""
        if self.as_json:
            click.echo(_dump(value))
        elif text:
            click.echo(text, color=self.colored(sys.stdout))

    def say(self, text: str) -> None:
        """Talk, on stderr; nothing with --quiet or --json."""
        if not self.quiet and not self.as_json:
            click.echo(text, err=True, color=self.colored(sys.stderr))

    def warn(self, text: str) -> None:
        """A warning; nothing with --json."""
        self.say(click.style("warning", fg="yellow") + f": {text}")

    def raw(self, data: bytes) -> None:
        """Bytes as they are, or escaped where a terminal would interpret them."""
        if sys.stdout.isatty():
            click.echo(safe_text(data))
        else:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    def error(self, error: ExecutorError) -> None:
        """One failure with its facts and hint."""
        self._fault(error.code, error.message, error.facts, error.hint, error.row.exit)

    def usage(self, message: str, command: str, hint: str, code: int) -> None:
        """The command line is wrong: the same parts, without a row in the table of codes."""
        facts = {"usage": command} if command else {}
        self._fault("usage", message, facts, hint, code)

    def _fault(
        self, code: str, message: str, facts: Mapping[str, str | int], hint: str, status: int
    ) -> None:
        if self.as_json:
            click.echo(_dump({
                "schema": "executor.error/1", "code": code, "message": message,
                "facts": facts, "hint": hint, "exit": status,
            }))  # fmt: skip
            return
        lines = [click.style(f"error[{code}]", fg="red") + f": {escape(message)}", ""]
        lines += [f"  {line}" for line in pairs(facts.items())]
        lines.append("  " + click.style("hint", fg="cyan") + f": {escape(hint)}")
        if code in TABLE:
            lines.append(f"  docs: executor explain {code}")
        click.echo("\n".join(lines), err=True, color=self.colored(sys.stderr))

    def bug(self, error: BaseException) -> None:
        """A failure that nobody expected: still no traceback unless it was asked for."""
        if self.verbose:
            traceback.print_exception(error)
        where = traceback.extract_tb(error.__traceback__)[-1]
        self.error(ExecutorError(
            "internal.bug", f"{type(error).__name__}: {error}",
            where=f"{os.path.basename(where.filename)}:{where.lineno}",  # noqa: PTH119
            hint="run again with -v and report what it prints",
        ))  # fmt: skip

    def colored(self, stream: Any) -> bool:
        """Whether colour goes to this stream; explicitly, since `click` would go by stdout."""
        if self.color == "always":
            return True
        return self.color == "auto" and stream.isatty() and "NO_COLOR" not in os.environ


def _dump(value: Mapping[str, Any]) -> str:
    """One line of JSON; a lone surrogate, from a file name or a guest, as its escape."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def pairs(facts: Iterable[tuple[str, str | int]]) -> list[str]:
    """Aligned `name  value` lines; a trap's frames on one line, a text of many lines below itself.

    Values are escaped: they may be a guest's.
    """
    rows: list[tuple[str, str]] = []
    frames = []
    for name, value in facts:
        if name.startswith("frame") and name[5:].isdigit():
            frames.append(str(value))
        else:
            rows.append((name, str(value)))
    if frames:
        rows.append(("frames", " < ".join(frames)))  # the innermost first
    width = max((len(name) for name, _ in rows), default=0)
    return [
        f"{escape(name) if first else '':<{width}}  {escape(line)}".rstrip()
        for name, value in rows
        for first, line in _numbered(value)
    ]


def _numbered(value: str) -> Iterable[tuple[bool, str]]:
    return ((number == 0, line) for number, line in enumerate(value.split("\n")))


def log_line(level: int, text: str) -> str:
    """A guest's log line for people."""
    name = LEVELS[level] if 0 <= level < len(LEVELS) else str(level)
    return f"log {name:<5}  {escape(text)}"


def log_fields(logs: Iterable[tuple[int, str]]) -> list[dict[str, str]]:
    """A guest's log lines for `--json`."""
    return [{"level": LEVELS[level], "text": text} for level, text in logs]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns without lines."""
    cells = [list(header), *[[escape(str(cell)) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def safe_text(data: bytes) -> str:
    """Guest bytes for a terminal: text where it is text, line by line, everything else escaped."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return f"{len(data):,} bytes: {data[:64].hex(' ')}{' …' if len(data) > 64 else ''}"  # noqa: PLR2004
    return "\n".join(escape(line, most=len(line) or 1) for line in text.split("\n"))


def content(data: bytes, content_type: str) -> dict[str, Any]:
    """An output for `--json`: a value where its type says so, text, or base64."""
    kind = content_type.partition(";")[0].strip()
    try:
        if kind == JSON:
            value = json.loads(data)
        elif kind == MSGPACK:
            value = from_msgpack(data)
        else:
            value = data.decode("utf-8")
        json.dumps(value, allow_nan=False)  # what JSON has no word for goes as its bytes
        return {"output": value, "content_type": content_type}
    except (ValueError, TypeError, RecursionError, ExecutorError):
        encoded = base64.b64encode(data).decode("ascii")
        return {"output": None, "output_base64": encoded, "content_type": content_type}


def shown(data: bytes, content_type: str, most: int = 60) -> str:
    """An output in one cell of a table."""
    value = content(data, content_type)["output"]
    if value is None:
        return f"{len(data):,} bytes"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    first = text.split("\n", 1)[0]
    return escape(first, most) if len(text) <= most and first == text else f"{len(data):,} bytes"


def count(value: int, noun: str) -> str:
    """A number of things: `1 tenant`, `2 tenants`."""
    return f"{number(value)} {noun}{'' if value == 1 else 's'}"


def number(value: int) -> str:
    """A count for people: thousands apart."""
    return f"{value:,}".replace(",", " ")


def size(value: int) -> str:
    """Bytes for people."""
    if value < 1024:  # noqa: PLR2004
        return f"{value} B"
    if value < 1024 * 1024:
        return f"{value / 1024:.1f} KiB"
    return f"{value / 1024 / 1024:.1f} MiB"


def used(receipt: Receipt) -> str:
    """What an attempt used, on one line."""
    return (
        f"fuel {number(receipt.fuel_used)} · memory {size(receipt.memory_peak_bytes)} · "
        f"guest {receipt.guest_us / 1000:.1f} ms, host {receipt.host_us / 1000:.1f} ms"
    )


def call_text(status: int) -> str:
    """How a host call ended, for people; "" for one that returned well."""
    return "did not return" if status == UNRETURNED else abi.ERRORS.get(status, "")


def timestamp(ms: int) -> str:
    """ISO 8601, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms / 1000)) + f".{ms % 1000:03d}Z"


def now_ms() -> int:
    """The time now, in ms."""
    return time.time_ns() // 1_000_000


def age(ms: int, now: int) -> str:
    """How long ago, in one unit."""
    seconds = max(0, now - ms) // 1000
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def short(task_id: str) -> str:
    """An id on a terminal."""
    if len(task_id) <= _SHORT_ID or not sys.stdout.isatty():
        return task_id
    return f"{task_id[:6]}…{task_id[-4:]}"


def failure_text(code: str, message: str) -> str:
    """A failure's sentence, from the table and what is particular."""
    row = TABLE.get(code)
    sentence = row.message if row else code
    return f"{sentence}: {escape(message)}" if message else sentence
