"""The real process and OpenTelemetry: spans that reach a collector, and nothing of it where nobody asked."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from daemon.demo.child import Outboxd
from daemon.demo.process import free_port
from outbox import __version__
from tests.acceptance.conftest import STORIES, Pair, Start, ended, streaming

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NOTE = f"""select set_config('outbox.headers', '{{"traceparent": "00-{TRACE}-{PARENT}-01"}}', true)"""
IMPORTS = {"PYTHONPROFILEIMPORTTIME": "1"}  # Python itself writes down each module that it imports


class Collector(http.server.ThreadingHTTPServer):
    """Takes OTLP over HTTP on loopback."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken: list[tuple[str, ExportTraceServiceRequest]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.taken.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_spans_reach_a_collector(direct: Pair, start: Start, collector: Collector) -> None:
    """One variable is enough. The last spans leave when the process ends; the log says which span a batch has."""
    outboxd = streaming(start(direct.settings, environment={**IMPORTS, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}))
    with direct.source.connect(autocommit=False) as app:
        app.execute(NOTE.encode())
        app.execute(STORIES.encode(), (3,))
    direct.arrives()
    assert outboxd.stop() == 0
    said = outboxd.said()
    (line,) = [line for line in said if line["event"] == "batch_applied"]
    assert [one["event"] for one in said].count("tracing_started") == 1
    assert {path for path, _ in collector.taken} == {"/v1/traces"}
    resources = [resource for _, request in collector.taken for resource in request.resource_spans]
    (span,) = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    described = {attribute.key: attribute.value.string_value for attribute in resources[0].resource.attributes}
    assert (described["service.name"], described["service.version"]) == ("outboxd", __version__)
    assert (span.name, span.kind, span.parent_span_id) == ("outbox apply", span.SPAN_KIND_CONSUMER, b"")
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in span.links] == [(TRACE, PARENT)]
    assert (span.trace_id.hex(), span.span_id.hex()) == (line["trace_id"], line["span_id"])
    assert "opentelemetry" in imported(outboxd)


def test_without_a_word_nothing_of_it_is_imported(direct: Pair, start: Start) -> None:
    """Though it is installed. (The test above shows that the list would show it.)"""
    direct.write(f"{NOTE}; {STORIES % 3}")
    outboxd = start(direct.settings, "run", "--until-idle", environment=IMPORTS)
    assert ended(outboxd) == 0
    assert {"daemon", "psycopg"} <= imported(outboxd)
    assert "opentelemetry" not in imported(outboxd)


def test_without_the_extra_the_daemon_runs_and_says_what_is_missing(direct: Pair, start: Start, folder: Path) -> None:
    """When a variable of OpenTelemetry's is set; the changes arrive all the same."""
    (folder / "without" / "opentelemetry").mkdir(parents=True)
    (folder / "without" / "opentelemetry" / "__init__.py").write_text("raise ModuleNotFoundError('not installed')\n")
    missing = {"PYTHONPATH": str(folder / "without"), "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    direct.write(STORIES, 3)
    outboxd = start(direct.settings, "run", "--until-idle", environment=missing)
    assert ended(outboxd) == 0
    direct.arrives(0)
    (warned,) = [line for line in outboxd.said() if line["event"] == "tracing_unavailable"]
    assert (
        warned["error"] == "OTEL_EXPORTER_OTLP_ENDPOINT is set, and the extra is missing: pip install 'outboxd[otel]'"
    )


def test_a_collector_that_is_away_costs_spans_and_nothing_else(direct: Pair, start: Start) -> None:
    """Changes go on, one line a minute says it, and SIGTERM ends the process in time."""
    away = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    outboxd = streaming(start(direct.settings, environment=away))
    for _ in range(20):
        direct.write(STORIES, 1)
        direct.arrives()
    assert outboxd.stop(20) == 0
    said = outboxd.said()
    (line,) = [line for line in said if line["event"] == "library_logged"]
    assert line["logger"].startswith("opentelemetry.exporter")
    assert "daemon_stopped" in [line["event"] for line in said]


def imported(outboxd: Outboxd) -> set[str]:
    """The packages that a process has imported."""
    lines = [line for line in outboxd.log.read_text().splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
