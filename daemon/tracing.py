"""Spans: one for each batch on its way, of dead letters, too, linked to the traces of the transactions in it.

The one module that knows OpenTelemetry, and only when it is wanted: unless the environment says where spans go, or
somebody else has set OpenTelemetry up in this process, nothing of it is imported. The OTEL_* variables are OpenTelemetry's
own, and are read where its SDK reads them. Knows nothing of windows or plans, and puts no row value and no key into a span.
"""

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import structlog

from daemon.batch import Batch
from daemon.delivery import Load
from daemon.errors import DaemonError, TargetError
from daemon.letters import Wanted
from daemon.plan import Plan
from daemon.target import Answer
from outbox import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Link, Span, Tracer

log = structlog.get_logger()

SPAN = "outbox apply"
_LINKS = 32
_TABLES = 8
_SAID = 60.0  # seconds between two lines of an exporter: while nobody takes spans it has one every few seconds
_PATIENCE = 3.0  # seconds that the last spans may take to leave
_WANTED = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER")


class Tracing:
    """Makes the spans of one relay. `clean` makes a sentence fit to be shown; `provider` is let go of at the end."""

    def __init__(
        self,
        tracer: "Tracer",
        relay: str,
        clean: Callable[[str], str] = str,
        provider: "TracerProvider | None" = None,
    ) -> None:
        self._tracer = tracer
        self._relay = relay
        self._clean = clean
        self._provider = provider

    def cover(self, outcome: asyncio.Task[tuple[Plan, Answer]], batch: Batch | Wanted, load: Load) -> Mapping[str, str]:
        """A span from here until the outcome is known; what names it in a log line. None for a batch without changes:
        it tells the target something of ours, and a trace every few seconds would bury the others.

        Two batches may be on their way: no span is the current one, and none is within another.
        """
        if not load.parcel.sheaves:
            return {}
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, format_span_id, format_trace_id

        headers, beyond = ((), 0) if load.parcel.copied else (batch.headers, batch.headers_left_out)
        links = links_of(headers)
        tables = sorted({sheaf.table for sheaf in load.parcel.sheaves})
        attributes: dict[str, Any] = {
            "outboxd.relay": self._relay,
            "outboxd.batch_no": load.parcel.batch_no,
            "outboxd.changes": load.planned.changes,
            "outboxd.tables": tables[:_TABLES],
            "outboxd.copied": load.parcel.copied,
        }
        if load.parcel.retried:
            attributes["outboxd.retried"] = True
        if left_out := len(links[_LINKS:]) + beyond:
            attributes["outboxd.links_left_out"] = left_out
        span = self._tracer.start_span(
            SPAN, context=Context(), kind=SpanKind.CONSUMER, attributes=attributes, links=links[:_LINKS]
        )
        outcome.add_done_callback(partial(self._end, span))
        if not span.is_recording():  # left out by the sampler: nobody would find it
            return {}
        context = span.get_span_context()
        return {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}

    def _end(self, span: "Span", outcome: asyncio.Task[tuple[Plan, Answer]]) -> None:
        """Never the exception itself: what is chained to it may quote a row."""
        from opentelemetry.trace import Status, StatusCode

        if outcome.cancelled():
            span.set_attribute("error.type", "cancelled")
            span.set_status(Status(StatusCode.ERROR, "given up before there was an answer"))
        elif (exc := outcome.exception()) is not None:
            said = self._clean(str(exc)) if isinstance(exc, DaemonError) else type(exc).__name__
            span.set_attribute("error.type", str(exc.kind) if isinstance(exc, TargetError) else type(exc).__name__)
            span.set_status(Status(StatusCode.ERROR, said))
        else:
            planned, answer = outcome.result()
            span.set_attribute("outboxd.changes", planned.changes)
            span.set_attribute("outboxd.gear", answer.more.get("gear", 1))
            span.set_attribute("outboxd.answer", answer.what)
        span.end()

    async def close(self) -> None:
        """Send what is left, unless nobody takes it: a collector that is away must not keep the process."""
        if self._provider is None:
            return
        left = threading.Thread(target=self._provider.shutdown, daemon=True)
        left.start()
        await asyncio.to_thread(left.join, _PATIENCE)


def begin(relay: str, clean: Callable[[str], str] = str, environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Tracing as the environment wants it; None: not at all. What is wrong with it is said, and stops nothing."""
    wanted = [name for name in _WANTED if environment.get(name)]
    off = (
        environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none"
    )
    if off or not (wanted or "opentelemetry.trace" in sys.modules):
        return None
    try:
        from opentelemetry import trace

        provider = trace.get_tracer_provider()
        if not isinstance(provider, trace.ProxyTracerProvider):  # `opentelemetry-instrument` was here
            return Tracing(provider.get_tracer("outboxd", __version__), relay, clean)
        if not wanted:
            return None
        ours = _provider(environment)
    except ImportError:
        named = wanted[0] if wanted else "OpenTelemetry"
        error = f"{named} is set, and the extra is missing: pip install 'outboxd[otel]'"
        log.warning("tracing_unavailable", error=error)
        return None
    except Exception as exc:  # noqa: BLE001  whatever is wrong with tracing, changes go on
        log.warning("tracing_unavailable", error=clean(str(exc)))
        return None
    log.info("tracing_started")
    return Tracing(ours.get_tracer("outboxd", __version__), relay, clean, ours)


def links_of(headers: Iterable[str]) -> list["Link"]:
    """A link to each trace that these headers name, once. What is no JSON, or names none as W3C wants it, has none."""
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found: dict[tuple[int, int], Link] = {}
    for text in headers:
        carrier = _carrier(text)
        context = TraceContextTextMapPropagator().extract(carrier, Context())
        named = get_current_span(context).get_span_context()
        if named.is_valid:
            found.setdefault((named.trace_id, named.span_id), Link(named))
    return list(found.values())


def _carrier(text: str) -> dict[str, str]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(given, dict):
        return {}
    return {name: given[name] for name in ("traceparent", "tracestate") if isinstance(given.get(name), str)}


def _provider(environment: Mapping[str, str]) -> "TracerProvider":
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    ours = Resource({"service.name": "outboxd", "service.version": __version__})
    resource = Resource.create(ours.merge(OTELResourceDetector().detect()).attributes)
    made = TracerProvider(resource=resource, shutdown_on_exit=False)
    for name in (environment.get("OTEL_TRACES_EXPORTER") or "otlp").split(","):
        made.add_span_processor(BatchSpanProcessor(_exporter(name.strip(), environment)))
    return made


def _exporter(name: str, environment: Mapping[str, str]) -> "SpanExporter":
    """By its entry point, as every exporter for OpenTelemetry has one."""
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if name == "otlp":
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    for found in entry_points(group="opentelemetry_traces_exporter", name=name):
        made: SpanExporter = found.load()()
        logging.getLogger(type(made).__module__).addFilter(_seldom())
        return made
    missing = "opentelemetry-exporter-otlp-proto-grpc" if name == "otlp_proto_grpc" else "the package that brings it"
    raise LookupError(f"no exporter of spans is called {name}: install {missing}, or mend OTEL_TRACES_EXPORTER and OTEL_EXPORTER_OTLP_PROTOCOL")  # fmt: skip


def _seldom() -> Callable[[logging.LogRecord], bool]:
    """Lets a line through now and then (promise I8)."""
    last = float("-inf")

    def let_through(_: logging.LogRecord) -> bool:
        nonlocal last
        now = time.monotonic()
        if now < last + _SAID:
            return False
        last = now
        return True

    return let_through
