"""Telemetry: spans and numbers by name, no payload in any of them, no line that a guest forges."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from executor import telemetry
from executor.errors import ExecutorError
from executor.model import (
    Failure,
    Finished,
    LogLine,
    Receipt,
    Result,
    TaskId,
    TaskRequest,
)
from executor.telemetry import AttemptFacts, Log, Telemetry

CANARY: Final = "canary-7f3a"
TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REQUEST: Final = TaskRequest(
    "acme", "resize", TaskId("1"), CANARY.encode(), attempt=2, trace=TRACE, content_type="x/y"
)
RECEIPT: Final = Receipt(
    digest="sha256:ab", fuel_used=10, memory_peak_bytes=20, guest_us=3_000, host_us=1_000,
    input_bytes=11, output_bytes=12,
)  # fmt: skip
DONE: Final = Finished(Result(CANARY.encode(), "x/y"), RECEIPT, (LogLine(2, f"{CANARY}\nforged"),))
FACTS: Final = AttemptFacts(
    delivered=3, stored_at=1_000, received_at=1_500, ended_at=2_000, settlement="result",
    calls=(("kv_get", 4),),
)  # fmt: skip


@dataclass
class Observed:
    """A telemetry whose output a test can read."""

    telemetry: Telemetry
    lines: io.StringIO
    spans: InMemorySpanExporter
    metrics: InMemoryMetricReader

    def span(self) -> ReadableSpan:
        """The one span that was recorded."""
        (span,) = self.spans.get_finished_spans()
        return span

    def points(self) -> dict[str, Any]:
        """The one data point of each metric."""
        data = self.metrics.get_metrics_data()
        if data is None:
            return {}
        found = json.loads(data.to_json())["resource_metrics"][0]["scope_metrics"][0]["metrics"]
        return {metric["name"]: metric["data"]["data_points"] for metric in found}


@pytest.fixture
def observed() -> Iterator[Observed]:
    """Spans, metrics and lines in memory."""
    lines, spans, metrics = io.StringIO(), InMemorySpanExporter(), InMemoryMetricReader()
    tracer = TracerProvider(shutdown_on_exit=False)
    tracer.add_span_processor(SimpleSpanProcessor(spans))
    meter = MeterProvider(metric_readers=[metrics], shutdown_on_exit=False)
    made = Telemetry(Log(lines), tracer, meter)
    yield Observed(made, lines, spans, metrics)
    made.close()


# Log lines.


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain-1/2:3", "plain-1/2:3"),
        ("", '""'),
        ("two words", '"two words"'),
        ('say "hi"\\', '"say \\"hi\\"\\\\"'),
        ("a\nb", '"a\\\\nb"'),
        (
            "a\r\n2020-01-01T00:00:00Z settled id=1",
            '"a\\\\r\\\\n2020-01-01T00:00:00Z settled id=1"',
        ),
        ("\x1b[31mred\x1b]0;t\x07", '"\\\\x1b[31mred\\\\x1b]0;t\\\\x07"'),
        ("\x9b2J", '"\\\\x9b2J"'),
        ("nul\0", '"nul\\\\x00"'),
        ("\u202egnp.exe", '"\\\\u202egnp.exe"'),
        ("a\u2028b\u2029c", '"a\\\\u2028b\\\\u2029c"'),
        ("\u2066x\u2069\u200e\ufeff", '"\\\\u2066x\\\\u2069\\\\u200e\\\\ufeff"'),
        ("\ud800", '"\\\\ud800"'),
        ("käse 🚀", '"käse 🚀"'),
        ("key=value", '"key=value"'),
    ],
    ids=ascii,
)
def test_a_value_cannot_forge_a_line(text: str, shown: str) -> None:
    """Line ends, escapes, bidirectional marks and NUL arrive as text, in one quoted value."""
    stream = io.StringIO()
    Log(stream).event("guest", text=text, id=1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ guest text=.* id=1\n", stream.getvalue())
    assert stream.getvalue()[21:] == f"guest text={shown} id=1\n"
    stream.getvalue().encode()


def test_every_character_stays_on_its_line() -> None:
    """No character of Unicode splits a line, moves a cursor or turns the direction of writing."""
    for start in range(0, 0x11_0000, 0x1000):
        stream = io.StringIO()
        Log(stream).event("guest", text="".join(map(chr, range(start, start + 0x1000))))
        assert len(stream.getvalue().splitlines()) == 1
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]",
                             stream.getvalue())  # fmt: skip


def test_long_values_are_cut() -> None:
    """A value is at most 4096 characters and says that it was cut."""
    assert telemetry.escape("a" * 4_096) == "a" * 4_096
    assert telemetry.escape("a" * 4_097) == "a" * 4_096 + "…"
    assert telemetry.escape("a\nb", most=2) == "a\\n…"


def test_a_quiet_log_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """`-q` silences the log; without a stream of its own it writes to stderr."""
    Log(quiet=True).event("start")
    assert capsys.readouterr() == ("", "")
    Log().event("start")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith(" start\n")


# Spans and metrics.


def test_a_submit_gives_the_parent_of_its_attempt(observed: Observed) -> None:
    """The traceparent of a submit makes the attempt its child, in one trace."""
    trace = observed.telemetry.submitted("acme", "resize", "1")
    observed.telemetry.attempt(replace(REQUEST, trace=trace), DONE, FACTS)
    submit, attempt = observed.spans.get_finished_spans()
    assert (submit.name, submit.kind) == (telemetry.SPAN_SUBMIT, SpanKind.PRODUCER)
    assert (attempt.name, attempt.kind) == (telemetry.SPAN_ATTEMPT, SpanKind.CONSUMER)
    assert submit.context is not None
    assert attempt.context is not None
    assert attempt.parent is not None
    assert attempt.context.trace_id == submit.context.trace_id
    assert attempt.parent.span_id == submit.context.span_id
    assert submit.attributes == {
        "messaging.system": "nats", "messaging.destination.name": "task.acme.resize",
        "messaging.operation.type": "send", "executor.tenant": "acme",
        "executor.task": "resize", "executor.task_id": "1",
    }  # fmt: skip


def test_an_attempt_is_the_child_of_the_traceparent_it_came_with(observed: Observed) -> None:
    """A trace that began elsewhere goes on here."""
    observed.telemetry.attempt(REQUEST, DONE, FACTS)
    parent = observed.span().parent
    assert parent is not None
    assert f"{parent.trace_id:032x}-{parent.span_id:016x}" == TRACE[3:52]


@pytest.mark.parametrize("trace", ["", "garbage", "00-0-0-01", CANARY, TRACE.replace("0af", "xyz")])
def test_a_trace_that_is_none_begins_one(observed: Observed, trace: str) -> None:
    """Whatever a submitter puts there, the attempt is recorded, and the text is not."""
    observed.telemetry.attempt(replace(REQUEST, trace=trace), DONE, FACTS)
    assert observed.span().parent is None
    assert CANARY not in observed.span().to_json()


def test_the_span_of_an_attempt(observed: Observed) -> None:
    """A span has its times, sizes, digest, counters and what became of the attempt."""
    observed.telemetry.attempt(REQUEST, DONE, FACTS)
    span = observed.span()
    assert (span.start_time, span.end_time) == (1_500_000_000, 2_000_000_000)
    assert span.attributes == {
        "messaging.system": "nats", "messaging.operation.type": "process",
        "messaging.destination.name": "task.acme.resize", "messaging.message.body.size": 11,
        "executor.tenant": "acme", "executor.task": "resize", "executor.task_id": "1",
        "executor.attempt": 2, "executor.delivery": 3, "executor.code": "ok",
        "executor.containment": "",
        "executor.module": "sha256:ab", "executor.fuel": 10, "executor.memory_bytes": 20,
        "executor.guest_us": 3_000, "executor.host_us": 1_000, "executor.output_bytes": 12,
        "executor.queue_age_ms": 500,
    }  # fmt: skip
    assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
        ("run", {"executor.guest_us": 3_000}),
        ("host calls", {"executor.function": "kv_get", "executor.count": 4}),
        ("settled", {"executor.settlement": "result"}),
    ]
    assert (span.status.status_code, span.status.description) == (StatusCode.OK, None)


def test_the_span_of_a_failure(observed: Observed) -> None:
    """A failure's span carries its code as status, never the guest's words."""
    failure = Failure("guest.failed", CANARY, CANARY, (("text", CANARY),))
    observed.telemetry.attempt(REQUEST, Finished(failure, RECEIPT), FACTS)
    span = observed.span()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "guest.failed")
    assert (span.attributes or {})["executor.code"] == "guest.failed"
    assert CANARY not in span.to_json()


def test_the_metrics_of_an_attempt(observed: Observed) -> None:
    """Each attempt is counted by tenant, task and code, and measured four ways."""
    observed.telemetry.attempt(REQUEST, DONE, FACTS)
    points = observed.points()
    labels = {"tenant": "acme", "task": "resize", "code": "ok"}
    assert points[telemetry.COUNT_ATTEMPTS][0]["value"] == 1
    sums = {name: found[0].get("sum") for name, found in points.items()}
    assert sums == {
        telemetry.COUNT_ATTEMPTS: None, telemetry.TIME_ATTEMPT: 4.0, telemetry.TIME_QUEUED: 500,
        telemetry.FUEL: 10, telemetry.MEMORY: 20,
    }  # fmt: skip
    assert all(found[0]["attributes"] == labels for found in points.values())


def test_clocks_that_disagree_give_no_negative_age(observed: Observed) -> None:
    """The server's clock may be ahead of ours."""
    observed.telemetry.attempt(REQUEST, DONE, replace(FACTS, stored_at=9_999))
    assert observed.points()[telemetry.TIME_QUEUED][0]["sum"] == 0
    assert (observed.span().attributes or {})["executor.queue_age_ms"] == 0


def test_no_payload_leaves_by_telemetry(observed: Observed) -> None:
    """Input and output are nowhere; a guest's line is in the log alone, escaped and marked."""
    observed.telemetry.attempt(REQUEST, DONE, FACTS)
    observed.telemetry.submitted("acme", "resize", "1")
    exported = "".join(span.to_json() for span in observed.spans.get_finished_spans())
    assert CANARY not in exported + json.dumps(observed.points())
    (line,) = observed.lines.getvalue().splitlines()
    assert line[21:] == (
        f'guest level=warn task=acme/resize id=1 attempt=2 text="{CANARY}\\\\nforged"'
    )


@pytest.mark.parametrize(("level", "name"), list(enumerate(("debug", "info", "warn", "error"))))
def test_guest_lines_keep_their_level(observed: Observed, level: int, name: str) -> None:
    """Each of the four levels has its name."""
    observed.telemetry.attempt(
        REQUEST, replace(DONE, logs=(LogLine(level, "a"), LogLine(level, "b"))), FACTS
    )
    assert observed.lines.getvalue().count(f"guest level={name} ") == 2


def test_a_security_event_is_a_line_and_a_count(observed: Observed) -> None:
    """A sign of attack is seen in the log and in a counter by its kind."""
    observed.telemetry.security_event("illegal-frame", subject="a\nb", sequence=7)
    assert observed.lines.getvalue().endswith(
        ' security-event kind=illegal-frame subject="a\\\\nb" sequence=7\n'
    )
    (point,) = observed.points()[telemetry.COUNT_SECURITY]
    assert (point["value"], point["attributes"]) == (1, {"kind": "illegal-frame"})


# Exporters.


@pytest.fixture
def quiet_logger() -> Iterator[None]:
    """Give the library's logger its level back."""
    logger = logging.getLogger("opentelemetry")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.mark.usefixtures("quiet_logger")
@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "", "OTEL_METRICS_EXPORTER": " , none"},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "unheard", "OTEL_SDK_DISABLED": "TRUE"},
    ],
    ids=str,
)
def test_nothing_is_exported_unless_asked_for(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the OTEL variables an attempt leaves its guest's lines and nothing else."""
    lines = io.StringIO()
    made = Telemetry.from_environment(Log(lines), name="executor-local", environ=environ)
    assert made.submitted("acme", "resize", "1") == ""
    made.attempt(REQUEST, DONE, FACTS)
    made.security_event("illegal-frame")
    made.close()
    assert len(lines.getvalue().splitlines()) == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("quiet_logger")
def test_console_exporters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`console` writes spans and metrics to stderr, under the service's name."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", " console ,none")
    made = Telemetry.from_environment(Log(io.StringIO()), name="executor-local")
    trace = made.submitted("acme", "resize", "1")
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]", trace)
    made.attempt(REQUEST, DONE, FACTS)
    made.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    for expected in (telemetry.SPAN_SUBMIT, telemetry.SPAN_ATTEMPT, telemetry.FUEL):
        assert f'"name": "{expected}"' in captured.err
    assert '"service.name": "executor-local"' in captured.err
    assert CANARY not in captured.err


@pytest.mark.covers("config.invalid")
@pytest.mark.usefixtures("quiet_logger")
@pytest.mark.parametrize("kind", ["TRACES", "METRICS"])
@pytest.mark.parametrize("name", ["unheard", "none,jaeger"])
def test_an_unknown_exporter_is_refused(kind: str, name: str) -> None:
    """A name that nobody knows stops the start and lists what there is."""
    with pytest.raises(ExecutorError) as caught:
        Telemetry.from_environment(Log(), name="x", environ={f"OTEL_{kind}_EXPORTER": name})
    assert caught.value.code == "config.invalid"
    assert f"`OTEL_{kind}_EXPORTER` names `{name.rpartition(',')[2]}`" in caught.value.detail
    assert "console, otlp or none" in caught.value.hint


@pytest.mark.covers("config.invalid")
@pytest.mark.usefixtures("quiet_logger")
@pytest.mark.parametrize("kind", ["TRACES", "METRICS"])
@pytest.mark.parametrize("by", ["exporter", "endpoint", "endpoint of its own"])
def test_otlp_needs_its_extra(kind: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for OTLP without its package, by name or by endpoint, the start says what to do."""
    for module in ("trace_exporter", "metric_exporter"):
        name = f"opentelemetry.exporter.otlp.proto.http.{module}"
        monkeypatch.setitem(sys.modules, name, None)
    environ = {
        "exporter": {f"OTEL_{kind}_EXPORTER": "otlp"},
        "endpoint": {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
            **({"OTEL_TRACES_EXPORTER": "none"} if kind == "METRICS" else {}),
        },
        "endpoint of its own": {f"OTEL_EXPORTER_OTLP_{kind}_ENDPOINT": "http://127.0.0.1:9"},
    }[by]
    with pytest.raises(ExecutorError) as caught:
        Telemetry.from_environment(Log(), name="x", environ=environ)
    assert caught.value.code == "config.invalid"
    assert f"OTEL_{kind}_EXPORTER" in caught.value.detail
    assert "pip install" in caught.value.hint


def test_a_log_whose_reader_is_gone() -> None:
    """A closed or broken stream loses lines, never the work that they tell of."""

    class Broken(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    Log(Broken()).event("lost")
    closed = io.StringIO()
    closed.close()
    Log(closed).event("lost")
