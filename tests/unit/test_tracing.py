"""Which headers name a trace, when there is tracing at all, and what is said when it cannot be had."""

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from daemon import tracing
from daemon.batch import Batch
from daemon.delivery import Load, Parcel
from daemon.plan import Plan, plan
from daemon.sheaf import Change, bind
from daemon.target import Answer, Standing
from daemon.tracing import Tracing, begin, links_of
from outbox import Cursor

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def headers(traceparent: object, **more: object) -> str:
    return json.dumps({"traceparent": traceparent, **more})


def test_a_traceparent_becomes_a_link():
    """With its state and flags, as of somewhere else; each once, in the order given."""
    other = GOOD.replace("4736", "4737")
    first, second = links_of([headers(GOOD, tracestate="vendor=1", baggage="a=b"), headers(other), headers(GOOD)])
    assert f"{first.context.trace_id:032x}-{first.context.span_id:016x}" == f"{TRACE}-{SPAN}"
    assert (first.context.trace_flags, first.context.is_remote) == (1, True)
    assert first.context.trace_state.get("vendor") == "1"
    assert f"{second.context.trace_id:032x}" == TRACE.replace("4736", "4737")


WRONG = {
    "no JSON": "traceparent",
    "half of it": headers(GOOD)[:-1],
    "a list": json.dumps(["traceparent", GOOD]),
    "a text": json.dumps(GOOD),
    "null": "null",
    "very deep": "[" * 100_000,
    "a very large number": "9" * 10_000,
    "another name": json.dumps({"Trace": GOOD}),
    "a number": headers(1),
    "a list of them": headers([GOOD]),
    "empty": headers(""),
    "capitals": headers(GOOD.upper()),
    "no trace": headers(f"00-{'0' * 32}-{SPAN}-01"),
    "no span": headers(f"00-{TRACE}-{'0' * 16}-01"),
    "too short": headers(GOOD[:-1]),
    "no hex": headers(GOOD.replace("4bf9", "xyz9")),
    "more behind it": headers(f"{GOOD}-what"),
    "a version that cannot be": headers(f"ff{GOOD[2:]}"),
    "other digits": headers(GOOD.replace("4", "٤")),
    "a state that is none": None,
}


@pytest.mark.parametrize(
    "text", [text for text in WRONG.values() if text], ids=[name for name, text in WRONG.items() if text]
)
def test_what_names_no_trace_is_ignored(text):
    """And does not keep another one from being linked."""
    assert links_of([text]) == []
    assert len(links_of([text, headers(GOOD), text])) == 1


@pytest.mark.parametrize("state", ["", "=", "a" * 2000, 5, None])
def test_a_wrong_state_costs_only_itself(state):
    """The trace is linked all the same."""
    assert len(links_of([headers(GOOD, tracestate=state)])) == 1


NOTHING: dict[str, dict[str, str]] = {
    "nothing set": {},
    "set to nothing": {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
    "no exporter": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    "disabled": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
}


@pytest.mark.parametrize("environment", NOTHING.values(), ids=NOTHING)
def test_without_a_word_of_where_spans_go_there_is_no_tracing(environment):
    """Though the extra is installed. Nothing is said either."""
    with capture_logs() as said:
        assert begin("main", environment=environment) is None
    assert said == []


def test_an_exporter_that_does_not_exist_is_said_and_stops_nothing():
    """One sentence names the cause and the fix."""
    with capture_logs() as said:
        assert begin("main", environment={"OTEL_TRACES_EXPORTER": "zipkin"}) is None
    (line,) = said
    assert (line["event"], line["log_level"]) == ("tracing_unavailable", "warning")
    assert line["error"].startswith("no exporter of spans is called zipkin: install")


@pytest.mark.parametrize(
    ("environment", "service"),
    [
        ({}, "outboxd"),
        ({"OTEL_SERVICE_NAME": "mirror"}, "mirror"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=shop,deployment.environment.name=test"}, "shop"),
    ],
)
async def test_the_service_is_called_outboxd_unless_it_is_given_a_name(monkeypatch, environment, service):
    """By the variables that every program with OpenTelemetry has."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made = begin("main", environment={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    assert made is not None
    assert made._provider is not None
    attributes = made._provider.resource.attributes
    await made.close()
    assert attributes["service.name"] == service
    assert attributes["telemetry.sdk.language"] == "python"
    if "OTEL_RESOURCE_ATTRIBUTES" in environment:
        assert attributes["deployment.environment.name"] == "test"


async def test_a_batch_without_changes_has_no_span():
    """What outboxd tells the target for itself is nobody's request."""
    memory, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    here = Cursor.beginning()
    row = Change(1, 1, "public.t", "delete", None, '{"id":1}', None, 0, unflushed=False, created_us=0)
    for changes in ([], [row]):
        sheaves = bind(changes)
        planned = plan(sheaves, {"public.t": 0}, {})
        load = Load(Parcel(sheaves, {}, here, 1, 1, ""), sheaves)
        load.planned = planned
        batch = Batch(sheaves, here, {}, 0, more=False, read_us=0)
        outcome = asyncio.create_task(answered(planned, Answer("applied", Standing(1, 1, here))))
        assert bool(Tracing(provider.get_tracer("test"), "main").cover(outcome, batch, load)) == bool(changes)
        await outcome
        await asyncio.sleep(0)  # whoever waits for it is told next
        assert len(memory.get_finished_spans()) == len(changes)


async def answered(planned: Plan, answer: Answer) -> tuple[Plan, Answer]:
    return planned, answer


async def test_a_collector_that_hangs_does_not_keep_the_process(monkeypatch):
    """The last spans have a few seconds."""
    monkeypatch.setattr(tracing, "_PATIENCE", 0.05)
    provider, release = TracerProvider(shutdown_on_exit=False), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang() -> None:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result(30)

    monkeypatch.setattr(provider, "shutdown", hang)
    async with asyncio.timeout(10):
        await Tracing(provider.get_tracer("test"), "main", provider=provider).close()
    release.set()


INSTRUMENTED = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
mine = TracerProvider()
trace.set_tracer_provider(mine)
from daemon.tracing import begin
made = begin("main", environment={})
assert made._tracer.resource is mine.resource and made._provider is None
"""


def test_what_opentelemetry_instrument_has_set_up_is_used(tmp_path: Any):
    """Its spans go where the others of the process go, and its end is not ours."""
    done = subprocess.run([sys.executable, "-c", INSTRUMENTED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
