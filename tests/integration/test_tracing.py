"""From a transaction's traceparent to a link on the span of the batch that carried it, between real databases."""

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from daemon.batch import Limits
from daemon.errors import TargetError
from daemon.session import query
from daemon.source import Source
from daemon.tracing import Tracing
from outbox import Change, aemit, emit
from tests.captured import Connection
from tests.integration.test_dead_letters import ASKED
from tests.pairs import Pair
from tests.relaying import Parts, assembled, install, until, within

TRACING = Path(__file__).parents[2] / "docs" / "tracing.md"


def parent(number: int) -> str:
    """A traceparent of an application; its trace is `number`."""
    return f"00-{number:032x}-{number:016x}-01"


def noted(number: int) -> str:
    """What an application runs first in its transaction."""
    return f"select set_config('outbox.headers', '{json.dumps({'traceparent': parent(number)})}', true)"


@dataclass(frozen=True)
class Spans:
    tracing: Tracing
    _memory: InMemorySpanExporter

    def all(self) -> tuple[ReadableSpan, ...]:
        return self._memory.get_finished_spans()

    def linked(self) -> list[list[int]]:
        """The traces each span is linked to."""
        return [[link.context.trace_id for link in span.links] for span in self.all()]


@pytest.fixture
def spans() -> Iterator[Spans]:
    memory, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    yield Spans(Tracing(provider.get_tracer("test"), "main"), memory)
    provider.shutdown()


@pytest.fixture
def stores(pair: Pair) -> Pair:
    """`item` is captured, and halts the relay when it is refused; `memo` is emitted."""
    install(pair.source, pair.target)
    return pair


def assembly(stores: Pair, spans: Spans, **options: Any) -> Any:
    return assembled(stores.source.dsn, stores.target.dsn, tracing=spans.tracing, **options)


async def carried(parts: Parts) -> None:
    parts.relay.lead()
    await parts.relay.drain()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return {name.removeprefix("outboxd."): value for name, value in (span.attributes or {}).items()}


async def test_a_batch_has_a_span_with_a_link_to_each_trace(stores: Pair, spans: Spans) -> None:
    """Of transactions that set outbox.headers; one that set nothing has none, one trace in two transactions has one."""
    stores.write(noted(1), "insert into item select n, n from generate_series(1, 50) n")
    stores.write("insert into item values (51, 51)")
    stores.write(noted(2), "delete from item where id < 20")
    stores.write(noted(1), "update item set n = 0")
    async with assembly(stores, spans) as parts:
        await carried(parts)
    (span,) = spans.all()
    assert spans.linked() == [[1, 2]]
    assert (span.name, span.kind, span.parent) == ("outbox apply", SpanKind.CONSUMER, None)
    assert attributes(span) == {
        "relay": "main", "batch_no": 1, "changes": 102, "tables": ("public.item",), "copied": False, "gear": 1, "answer": "applied",
    }  # fmt: skip
    assert span.status.status_code is StatusCode.UNSET
    (line,) = [line for line in parts.log if line["event"] == "batch_applied"]
    assert (line["trace_id"], line["span_id"]) == (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}")


async def test_the_sql_of_the_documentation_works(stores: Pair, spans: Spans) -> None:
    """As it stands there, between begin and commit."""
    stores.create("create table story (id int primary key, title text)", "story")
    shown = re.findall(r"```sql\n(.*?)```", TRACING.read_text("utf-8"), re.DOTALL)
    stores.write(*shown)
    async with assembly(stores, spans) as parts:
        await carried(parts)
    assert spans.linked() == [[0x4BF92F3577B34DA6A3CE929D0E0E4736]]


async def test_what_emit_is_given_is_linked(stores: Pair, spans: Spans) -> None:
    """From Python, from asyncio and from SQL; what a change is given itself goes before what its transaction has set."""
    headers = {"traceparent": parent(1), "tracestate": "shop=1"}
    with stores.source.connect(autocommit=False) as conn:
        conn.execute(noted(9).encode())
        emit(conn, Change.upsert("memo", {"id": 1, "n": 1}, headers))
        conn.execute(
            "select outbox.emit('memo', 'delete', key => '{\"id\": 3}', headers => %s)",
            (json.dumps({"traceparent": parent(3)}),),
        )
        conn.execute("select outbox.emit('memo', 'delete', key => '{\"id\": 4}')")
    async with await psycopg.AsyncConnection.connect(stores.source.dsn) as conn2:
        await conn2.execute("select 1")
        await aemit(conn2, Change.upsert("memo", {"id": 2, "n": 2}, {"traceparent": parent(2)}))
    async with assembly(stores, spans) as parts:
        await carried(parts)
    assert spans.linked() == [[1, 3, 9, 2]]
    (span,) = spans.all()
    assert [link.context.trace_state.get("shop") for link in span.links] == ["1", None, None, None]


PATHS = {
    "insert": ("insert into t values (3, 3)", 1),
    "update": ("update t set n = 5", 2),
    "update that moves a key": ("update t set id = 9 where id = 1", 2),
    "delete": ("delete from t", 2),
    "truncate": ("truncate t", 1),
    "merge": ("merge into t using (values (1), (7)) v(id) on t.id = v.id when matched then delete when not matched then insert values (7, 7)", 2),
    "rows read again": ("insert into t values (-1, 0)", 2),
    "a large row": ("update t set note = (select string_agg(md5(i::text), '') from generate_series(1, 10000) i)", 2),
    "truncate of a partition": ("truncate part_1", 1),
    "insert into a partition": ("insert into part_1 values (5)", 1),
    "with a filter": ("update kept set n = 1", 2),
    "a row that leaves the filter": ("update kept set n = -1 where id = 1", 1),
}  # fmt: skip

TABLES = """
create table t (id int primary key, n int, note text);
alter table t alter note set storage external;
create function nested() returns trigger language plpgsql as $$
begin
  if new.id < 0 then insert into t values (-new.id * 100, 0); end if;
  return null;
end $$;
create trigger nested after insert on t for each row execute function nested();
create table part (id int primary key) partition by range (id);
create table part_1 partition of part for values from (0) to (100);
create table kept (id int primary key, n int);
select outbox.watch('t'), outbox.watch('part'), outbox.watch('kept', filter => 'n > 0');
insert into t values (1, 1), (2, 2); insert into part values (1); insert into kept values (1, 2), (2, 3);
"""


@pytest.mark.parametrize(("statement", "changes"), PATHS.values(), ids=PATHS)
def test_every_way_of_capture_keeps_the_headers(scratch: Connection, statement: str, changes: int) -> None:
    """Copied, read again, truncated, filtered: each change of the transaction says where it comes from."""
    scratch.execute(TABLES)
    scratch.execute("delete from outbox.change")
    scratch.execute(f"{noted(1)}; {statement}".encode())
    found = scratch.execute("select headers::json ->> 'traceparent' from outbox.change").fetchall()
    assert found == [(parent(1),)] * changes


async def test_headers_that_are_not_json_harm_nobody(stores: Pair, spans: Spans) -> None:
    """The statement succeeds, the change travels, a neighbour's trace is linked; the text is kept."""
    for number, text in enumerate(["no json", "{", "[1]", '{"traceparent": "00-zz"}', "x" * 16_384, ""], start=1):
        stores.write(f"select set_config('outbox.headers', '{text}', true)", f"insert into item values ({number}, 1)")
    stores.write(noted(7), "insert into item values (7, 1)")
    async with assembly(stores, spans) as parts:
        await carried(parts)
    assert spans.linked() == [[7]]
    stores.assert_equal("item")


async def test_of_many_traces_some_are_linked_and_the_rest_counted(stores: Pair, spans: Spans) -> None:
    """The oldest 32, so that a span stays small; also when there are more than are read at all."""
    for first, count in ((1, 40), (1001, 300)):
        stores.write(
            *(
                step
                for number in range(first, first + count)
                for step in (noted(number), f"insert into item values ({number}, 1)")
            )
        )
        async with assembly(stores, spans) as parts:
            await carried(parts)
        assert spans.linked()[-1] == list(range(first, first + 32))
        assert attributes(spans.all()[-1])["links_left_out"] == count - 32


async def test_a_link_belongs_to_one_batch(stores: Pair, spans: Spans) -> None:
    """Transactions side by side, a window of several pages, one transaction torn: each batch is linked to its own."""
    with stores.source.connect(autocommit=False) as late:
        late.execute(f"{noted(1)}; insert into item values (1, 1)".encode())
        stores.write(noted(2), "insert into item values (2, 2)")
        async with assembly(stores, spans) as parts:
            await carried(parts)
        late.execute("insert into item values (3, 3)")
        stores.write(noted(4), "insert into item values (4, 4)")
        late.commit()
    stores.write(noted(5), "insert into item select n, 0 from generate_series(10, 19) n")
    async with assembly(stores, spans, limits=Limits(changes=4)) as parts:
        await carried(parts)
    assert [sorted(traces) for traces in spans.linked()] == [[2], [1, 4], [5], [5], [5]]
    stores.assert_equal("item")


async def test_a_target_that_fails_makes_a_span_that_failed(stores: Pair, spans: Spans) -> None:
    """With the kind of failure and its sentence, and without the row; the batch that is sent again has a span of its own."""
    with stores.target.connect() as mirror:
        mirror.execute("alter table item add constraint small check (n < 10)")
    stores.write(noted(1), "insert into item values (1, 424242)")
    async with assembly(stores, spans) as parts:
        parts.relay.lead()
        with pytest.raises(TargetError) as refused:
            await parts.relay.step()
        stores.write(noted(2), "update item set n = 1")
        parts.door.lose = 1
        with pytest.raises(TargetError):
            await parts.relay.step()
        stores.write(noted(3), "update item set n = 2")
        assert await parts.relay.step()
    first, second, third = spans.all()
    assert spans.linked() == [[1], [1, 2], [3]]
    assert [span.status.status_code for span in (first, second, third)] == [
        StatusCode.ERROR,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]
    assert (attributes(first)["error.type"], first.status.description) == ("data", str(refused.value))
    assert attributes(second)["error.type"] == "ambiguous"
    assert attributes(third)["batch_no"] == 2
    assert not any(span.events for span in spans.all())  # an exception as it is would quote the row
    assert "424242" not in "".join(span.to_json() for span in spans.all())


async def test_two_batches_on_their_way_have_spans_side_by_side(stores: Pair, spans: Spans) -> None:
    """From sending to the answer: they overlap, each a trace of its own, and neither is within the other."""
    async with assembly(stores, spans, limits=Limits(changes=2)) as parts:
        for number in range(1, 9):
            stores.write(noted(number), f"insert into item values ({number}, 0)")
        parts.relay.lead()
        assert await parts.relay.step()
        parts.door.gate.clear()
        train = asyncio.create_task(parts.relay.step(2))
        await until(lambda: parts.door.modes.count("apply") == 3)
        assert len(spans.all()) == 1
        parts.door.gate.set()
        assert await within(30, train)
        await parts.relay.drain()
    found = sorted(spans.all(), key=lambda span: span.start_time or 0)
    assert len({span.context.trace_id for span in found}) == len(found)
    assert [span.parent for span in found] == [None] * len(found)
    # The second of two may come first when both are let go: it is answered `mismatch`, and sent again.
    applied = [span for span in found if attributes(span).get("answer") == "applied"]
    assert [link.context.trace_id for span in applied for link in span.links] == list(range(1, 9))
    sent = [(span.start_time or 0, span.end_time or 0) for span in found]
    assert sent[1][0] < sent[2][0] < sent[1][1]
    assert all(start <= end for start, end in sent)


async def test_a_turn_that_is_given_up_ends_its_span(stores: Pair, spans: Spans) -> None:
    """So that it is not lost: it says that there was no answer."""
    async with assembly(stores, spans) as parts:
        parts.relay.lead()
        stores.write(noted(1), "insert into item values (1, 0)")
        parts.door.gate.clear()
        turn = asyncio.create_task(parts.relay.step())
        await within(30, parts.door.reached.wait())
        turn.cancel()
        with suppress(asyncio.CancelledError):
            await turn
        parts.door.gate.set()
        (span,) = spans.all()
        assert (span.status.status_code, attributes(span)["error.type"]) == (StatusCode.ERROR, "cancelled")


async def test_without_tracing_no_headers_are_read(stores: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost a question for each batch; the line says nothing of spans."""

    async def asked(*_: Any) -> Any:
        raise AssertionError("headers were read")

    monkeypatch.setattr(Source, "_headers", asked)
    stores.write(noted(1), "insert into item values (1, 0)")
    async with assembled(stores.source.dsn, stores.target.dsn) as parts:
        await carried(parts)
    (line,) = [line for line in parts.log if line["event"] == "batch_applied"]
    assert not {"trace_id", "span_id"} & line.keys()


async def test_a_span_that_the_sampler_leaves_out_is_not_named(stores: Pair) -> None:
    """A line with a trace that nobody can find would lead nowhere."""
    tracing = Tracing(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("test"), "main")
    stores.write(noted(1), "insert into item values (1, 0)")
    async with assembled(stores.source.dsn, stores.target.dsn, tracing=tracing) as parts:
        await carried(parts)
    (line,) = [line for line in parts.log if line["event"] == "batch_applied"]
    assert "trace_id" not in line


async def test_dead_letters_keep_their_headers(stores: Pair, spans: Spans) -> None:
    """A letter says whose request wrote the row, for as long as it waits."""
    with stores.source.connect() as app, stores.target.connect() as mirror:
        app.execute("select outbox.on_error('item', 'hold')")
        mirror.execute("alter table item add constraint small check (n < 10)")
    stores.write(noted(1), "insert into item values (1, 99), (2, 2)")
    async with assembly(stores, spans) as parts:
        await carried(parts)
    with stores.source.connect() as app:
        assert app.execute("select id, headers::json ->> 'traceparent' from outbox.held").fetchall() == [(1, parent(1))]
    (span,) = spans.all()
    assert (spans.linked(), attributes(span)["gear"], span.status.status_code) == ([[1]], 3, StatusCode.UNSET)


async def test_dead_letters_sent_again_have_a_span(stores: Pair, spans: Spans) -> None:
    """Each try one of its own, linked to the traces of the letters in it; what is dropped has none."""
    with stores.source.connect() as app, stores.target.connect() as mirror:
        app.execute("select outbox.on_error('item', 'hold')")
        mirror.execute("alter table item add constraint small check (n < 10)")
        stores.write(noted(1), "insert into item values (1, 424242)")
        stores.write(noted(2), "update item set n = 424243")
        stores.write(noted(3), "insert into item values (2, 424244)")
        async with assembly(stores, spans, timing=ASKED) as parts:
            await carried(parts)
            first = len(spans.all())
            for many in (1, 2):
                app.execute("update outbox.held set wanted = 'retry' where key like '%1%'")
                await parts.relay.drain()
                assert len(spans.all()) == first + many
                mirror.execute("alter table item drop constraint if exists small")
            app.execute("update outbox.held set wanted = 'discard'")
            await parts.relay.drain()
            assert app.execute("select count(*) from outbox.held").fetchone() == (0,)
    again = spans.all()[first:]
    assert [attributes(span)["retried"] for span in again] == [True, True]
    assert [attributes(span)["gear"] for span in again] == [3, 1]
    assert spans.linked()[first:] == [[1, 2], [1, 2]]
    assert "42424" not in "".join(span.to_json() for span in again)
    assert all(span.status.status_code is StatusCode.UNSET for span in again)
    assert not any("retried" in attributes(span) for span in spans.all()[:first])


@pytest.mark.parametrize("analyzed", [False, True])
def test_headers_are_found_by_the_index(stores: Pair, analyzed: bool) -> None:
    """In a deep outbox only the batch's own changes are looked at."""
    stores.write(noted(1), "insert into item select n, n from generate_series(1, 30000) n")
    asked = {"first": "{100,300}", "last": "{200,300}", "bytes": 16_384, "limit": 128}
    with psycopg.connect(stores.source.dsn, autocommit=True, cursor_factory=psycopg.ClientCursor) as conn:
        if analyzed:
            conn.execute("analyze outbox.change")
        found = conn.execute(b"explain (analyze, format json) " + query("batch_headers"), asked).fetchone()
    assert found is not None
    (plan,) = found[0]
    scans = [node for node in _nodes(plan["Plan"]) if str(node.get("Relation Name", "")).startswith("change")]
    assert (
        sum(node["Actual Rows"] * node["Actual Loops"] + node.get("Rows Removed by Filter", 0) for node in scans)
        <= 102 + 4
    )


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from _nodes(inner)
