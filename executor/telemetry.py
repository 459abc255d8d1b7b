"""Names of spans, metrics and log events, and the only importer of OpenTelemetry.

Nothing is exported unless the usual OTEL_* variables ask for it. No payload enters a span, a
metric or a log line: sizes, digests and codes only. Guest text is escaped before it is logged.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TextIO

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from executor.errors import ExecutorError
from executor.model import Failure, Finished, LogLine, TaskRequest
from executor.values import light_dataclass

SPAN_SUBMIT: Final = "task submit"
SPAN_ATTEMPT: Final = "task attempt"
COUNT_ATTEMPTS: Final = "executor.attempts"
COUNT_SECURITY: Final = "executor.security_events"
COUNT_SHADOW: Final = "executor.shadow_denials"
TIME_ATTEMPT: Final = "executor.attempt.duration"
TIME_QUEUED: Final = "executor.queue.age"
FUEL: Final = "executor.attempt.fuel"
MEMORY: Final = "executor.attempt.memory"
LEVELS: Final = "executor.levels"

_SCOPE: Final = "executor"
_LINE_MAX: Final = 4096
_LEVELS: Final = ("debug", "info", "warn", "error")
# Control characters, escapes, line separators and bidirectional marks cannot forge a line.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_PLAIN: Final = re.compile(r"[-\w./:@+*,<>()\[\]%]+\Z")


def escape(text: str, most: int = _LINE_MAX) -> str:
    """`text` on one line, harmless for a terminal and a log, cut at `most` characters."""
    cut = text if len(text) <= most else text[:most] + "…"
    return _UNSAFE.sub(lambda m: m.group().encode("unicode_escape").decode("ascii"), cut)


def _value(value: object) -> str:
    text = escape(str(value))
    if _PLAIN.match(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class Log:
    """One event per line on stderr: `time event key=value …`."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self.quiet = quiet

    def event(self, name: str, **facts: str | int) -> None:
        """Write one line."""
        if self.quiet:
            return
        pairs = "".join(f" {key}={_value(value)}" for key, value in facts.items())
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        # Whoever read this stream may be gone: that must not stop the work it tells of.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(f"{now} {name}{pairs}\n")
            self._stream.flush()


def _exporters(kind: str, environ: Mapping[str, str]) -> list[str]:
    """The exporters that the OTEL_* variables name for `kind`; none by default."""
    named = environ.get(f"OTEL_{kind}_EXPORTER", "")
    if not named and (
        "OTEL_EXPORTER_OTLP_ENDPOINT" in environ or f"OTEL_EXPORTER_OTLP_{kind}_ENDPOINT" in environ
    ):
        named = "otlp"
    return [name for name in (n.strip() for n in named.split(",")) if name and name != "none"]


def _unknown_exporter(name: str, kind: str) -> ExecutorError:
    return ExecutorError(
        "config.invalid", f"`OTEL_{kind}_EXPORTER` names `{name}`",
        hint="use console, otlp or none; otlp needs: pip install wasm-task-executor[otlp]",
    )  # fmt: skip


def _span_exporter(name: str) -> SpanExporter:
    if name == "console":
        return ConsoleSpanExporter(out=sys.stderr)
    if name == "otlp":
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # an extra
                OTLPSpanExporter,
            )
        except ImportError:
            raise _unknown_exporter(name, "TRACES") from None
        exporter: SpanExporter = OTLPSpanExporter()
        return exporter
    raise _unknown_exporter(name, "TRACES")


def _metric_reader(name: str) -> MetricReader:
    if name == "console":
        return PeriodicExportingMetricReader(ConsoleMetricExporter(out=sys.stderr))
    if name == "otlp":
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # an extra
                OTLPMetricExporter,
            )
        except ImportError:
            raise _unknown_exporter(name, "METRICS") from None
        return PeriodicExportingMetricReader(OTLPMetricExporter())
    raise _unknown_exporter(name, "METRICS")


def producer_span(tenant: str, task: str, task_id: str, tracer: trace.Tracer | None = None) -> str:
    """Record a producer span, by default with the program's own provider; its traceparent.

    "" where no provider is configured: the library's default tracer has no valid context.
    """
    if tracer is None:
        nobody = isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        if nobody and trace.get_current_span() is trace.INVALID_SPAN:
            return ""  # as the default tracer would give, at a tenth of its cost
        tracer = trace.get_tracer(_SCOPE)
    carrier: dict[str, str] = {}
    with tracer.start_as_current_span(
        SPAN_SUBMIT, kind=SpanKind.PRODUCER,
        attributes={
            "messaging.system": "nats", "messaging.destination.name": f"task.{tenant}.{task}",
            "messaging.operation.type": "send", "executor.tenant": tenant,
            "executor.task": task, "executor.task_id": task_id,
        },
    ):  # fmt: skip
        TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


@light_dataclass(frozen=True, slots=True)
class AttemptFacts:
    """What a span says of one attempt beside its outcome; times in ms since 1970."""

    delivered: int
    stored_at: int
    received_at: int
    ended_at: int
    settlement: str
    calls: tuple[tuple[str, int], ...] = ()  # mediated function and how often


class Telemetry:
    """Spans, metrics and log events of one process."""

    def __init__(
        self, log: Log, tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:  # fmt: skip
        self.log = log
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._tracer = tracer_provider.get_tracer(_SCOPE) if tracer_provider else None
        self._propagator = TraceContextTextMapPropagator()
        self._attempts: Counter | None = None
        if meter_provider:
            self._make_instruments(meter_provider)

    def _make_instruments(self, provider: MeterProvider) -> None:
        meter: metrics.Meter = provider.get_meter(_SCOPE)
        self._attempts = meter.create_counter(COUNT_ATTEMPTS, "{attempt}", "attempts by code")
        self._security = meter.create_counter(COUNT_SECURITY, "{event}", "signs of attack")
        self._shadow = meter.create_counter(COUNT_SHADOW, "{run}", "what the shadow would deny")
        self._duration: Histogram = meter.create_histogram(TIME_ATTEMPT, "ms", "guest and host")
        self._queued: Histogram = meter.create_histogram(TIME_QUEUED, "ms", "stored to received")
        self._fuel: Histogram = meter.create_histogram(FUEL, "{fuel}", "fuel used")
        self._memory: Histogram = meter.create_histogram(MEMORY, "By", "peak guest memory")

    @classmethod
    def from_environment(
        cls, log: Log, *, name: str, environ: Mapping[str, str] | None = None
    ) -> Telemetry:
        """Providers as the OTEL_* variables ask. Errors  `config.invalid`."""
        environ = os.environ if environ is None else environ
        if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return cls(log)
        traces, meters = _exporters("TRACES", environ), _exporters("METRICS", environ)
        # An exporter's complaints would otherwise reach the terminal as tracebacks.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        resource = Resource.create({"service.name": environ.get("OTEL_SERVICE_NAME", name)})
        tracer_provider = meter_provider = None
        if traces:
            tracer_provider = TracerProvider(resource=resource)
            for exporter in traces:
                tracer_provider.add_span_processor(BatchSpanProcessor(_span_exporter(exporter)))
        if meters:
            readers = [_metric_reader(exporter) for exporter in meters]
            meter_provider = MeterProvider(resource=resource, metric_readers=readers)
        return cls(log, tracer_provider, meter_provider)

    def submitted(self, tenant: str, task: str, task_id: str) -> str:
        """Record a producer span and return its traceparent; "" when nothing is traced."""
        if self._tracer is None:
            return ""
        return producer_span(tenant, task, task_id, self._tracer)

    def attempt(self, request: TaskRequest, finished: Finished, facts: AttemptFacts) -> None:
        """Record one attempt: its span, its numbers, and its guest's log lines."""
        outcome = finished.outcome
        code = outcome.code if isinstance(outcome, Failure) else "ok"
        self.guest_lines(request, finished.logs)
        if self._attempts is not None:
            receipt = finished.receipt
            # A name that never ran is the submitter's invention: as a label it would let anyone
            # grow the metrics without bound.
            task = request.task if receipt.digest else "-"
            labels = {"tenant": request.tenant, "task": task, "code": code}
            if receipt.containment.startswith("weakened"):
                labels["containment"] = "weakened"
            self._attempts.add(1, labels)
            self._duration.record((receipt.guest_us + receipt.host_us) / 1000, labels)
            self._queued.record(max(0, facts.received_at - facts.stored_at), labels)
            self._fuel.record(receipt.fuel_used, labels)
            self._memory.record(receipt.memory_peak_bytes, labels)
        if self._tracer is not None:
            self._span(request, finished, facts, code)

    def _span(
        self, request: TaskRequest, finished: Finished, facts: AttemptFacts, code: str
    ) -> None:
        assert self._tracer is not None
        parent = self._propagator.extract({"traceparent": request.trace}) if request.trace else None
        receipt = finished.receipt
        span = self._tracer.start_span(
            SPAN_ATTEMPT, context=parent, kind=SpanKind.CONSUMER,
            start_time=facts.received_at * 1_000_000,
            attributes={
                "messaging.system": "nats", "messaging.operation.type": "process",
                "messaging.destination.name": f"task.{request.tenant}.{request.task}",
                "messaging.message.body.size": receipt.input_bytes,
                "executor.tenant": request.tenant, "executor.task": request.task,
                "executor.task_id": request.id, "executor.attempt": request.attempt,
                "executor.delivery": facts.delivered, "executor.code": code,
                "executor.containment": receipt.containment,
                "executor.module": receipt.digest, "executor.fuel": receipt.fuel_used,
                "executor.memory_bytes": receipt.memory_peak_bytes,
                "executor.guest_us": receipt.guest_us, "executor.host_us": receipt.host_us,
                "executor.output_bytes": receipt.output_bytes,
                "executor.queue_age_ms": max(0, facts.received_at - facts.stored_at),
            },
        )  # fmt: skip
        end = facts.ended_at * 1_000_000
        span.add_event("run", {"executor.guest_us": receipt.guest_us}, timestamp=end)
        for function, count in facts.calls:
            span.add_event(
                "host calls", {"executor.function": function, "executor.count": count},
                timestamp=end,
            )  # fmt: skip
        span.add_event("settled", {"executor.settlement": facts.settlement}, timestamp=end)
        span.set_status(Status(StatusCode.OK if code == "ok" else StatusCode.ERROR, None
                               if code == "ok" else code))  # fmt: skip
        span.end(end)

    @property
    def listens(self) -> bool:
        """Whether anybody wants to know of attempts: else nothing need be put together."""
        return self._attempts is not None or self._tracer is not None

    def guest_lines(self, request: TaskRequest, lines: Sequence[LogLine]) -> None:
        """What a guest logged, for the log."""
        if self.log.quiet:
            return
        for line in lines:
            self.log.event(
                "guest", level=_LEVELS[line.level], task=f"{request.tenant}/{request.task}",
                id=request.id, attempt=request.attempt, text=line.text,
            )  # fmt: skip

    def observe(self, levels: Callable[[], Mapping[str, int]]) -> None:
        """Measure these levels from time to time, by name."""
        if self._meter_provider is None:
            return

        def look(_options: CallbackOptions) -> list[Observation]:
            return [Observation(value, {"level": name}) for name, value in levels().items()]

        self._meter_provider.get_meter(_SCOPE).create_observable_gauge(
            LEVELS, [look], "1", "sandboxes, attempts running, tasks waiting and held, breakers"
        )

    def security_event(self, kind: str, **facts: str | int) -> None:
        """A sign of attack: one typed line and a counter, until the audit trail exists."""
        self.log.event("security-event", kind=kind, **facts)
        if self._attempts is not None:
            self._security.add(1, {"kind": kind})

    def shadow_denies(self, task: str, what: str, *, new: bool) -> None:
        """The shadow of the policy would deny this; a line the first time, a count each time."""
        if new:
            self.log.event("shadow-denies", task=task, what=what)
        if self._attempts is not None:
            self._shadow.add(1, {"task": task, "what": what})

    def close(self) -> None:
        """Send what is left."""
        if self._tracer_provider:
            self._tracer_provider.shutdown()
        if self._meter_provider:
            self._meter_provider.shutdown()
