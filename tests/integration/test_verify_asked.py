"""What somebody asks for goes before passes by the clock, and is not slowed down as they are."""

import asyncio

from tests.pairs import Pair, Parts

TABLES = ("public.early", "public.late")


async def until(parts: Parts, table: str, state: str) -> None:
    async with asyncio.timeout(20):
        while (record := parts.relay.verifier.records.get(table)) is None or record.state != state:
            await parts.relay.step(8)
            await asyncio.sleep(0)


async def test_a_pass_by_the_clock_ends_before_another_begins(pair: Pair) -> None:
    """And the one that has waited longest is next, though its parent is due again: none is put off for ever."""
    early, late = TABLES
    pair.create(
        f"create table {late} (id int primary key); create table {early} (id int primary key references {late})",
        late,
        early,
    )
    pair.write(*(f"insert into {table} select generate_series(1, 70)" for table in (late, early)))
    async with pair.relay() as parts:
        await parts.relay.drain()
        verifier, ended = parts.relay.verifier, list[str]()
        verifier.every = 1e-6  # due again as soon as it has ended
        async with asyncio.timeout(20):
            while len(ended) < 6:
                await parts.relay.step(1)
                for table in TABLES:
                    record = verifier.records.get(table)
                    if record and record.state == "done" and table in verifier._unsaved and ended[-1:] != [table]:
                        ended.append(table)
        assert ended == [late, early] * 3


async def test_a_table_that_is_asked_for_does_not_wait_for_a_pass_by_the_clock(pair: Pair) -> None:
    """The first table has one row in a fifth of a second."""
    pair.create("; ".join(f"create table {table} (id int primary key)" for table in TABLES), *TABLES)
    pair.write(*(f"insert into {table} select generate_series(1, 70)" for table in TABLES))
    async with pair.relay() as parts:
        await parts.relay.drain()
        verifier = parts.relay.verifier
        verifier.every, verifier.rate = 3600.0, 5.0
        await until(parts, "public.early", "running")
        before = verifier.records["public.early"].rows
        with pair.source.connect() as source:
            source.execute("select outbox.ask_verification('public.late')")
        verifier.ring()
        await until(parts, "public.late", "done")
        assert (verifier.records["public.late"].rows, verifier.records["public.late"].asked) == (70, True)
        assert verifier.records["public.early"].rows <= before + 2, "it goes on later"
        assert verifier.due_in() is not None
