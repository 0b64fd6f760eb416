"""What stopped all tables around rows that somebody has locked, or for which a trigger on the target fails. Each is the matter of its
row, or of its table; all others go on (promise I8)."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from daemon import target as doorway
from daemon.errors import Kind, TargetError
from daemon.plan import SEPARATOR
from daemon.progress import Timing
from daemon.target import PostgresDoor
from tests.integration.test_out_emitted import on_target
from tests.pairs import Pair
from tests.security.relayed import turned_until

SOON = Timing(poll=0.02, recheck=0.05, retry_first=0.01, retry_cap=0.05, letters=0.0)


def there(pair: Pair, query: str) -> int:
    """A number that the target answers."""
    return int(pair.rows(query)[1][0][0])


POISON = """create function poison() returns trigger language plpgsql as $$ begin
  if new.v = -1 then raise exception using errcode = '%s'; end if; return new; end $$;
create trigger poison before insert or update on slow for each row execute function poison()"""


@pytest.mark.parametrize("state", ["40001", "40P01", "OB005", "OB006"])
async def test_a_trigger_that_says_what_only_others_may_say(pair: Pair, state: str) -> None:
    """Others write the same rows (again and again), or a code of the door itself: for one row, it is that row's matter."""
    pair.create("create table slow (id int primary key, v int)", "slow")
    pair.create("create table item (id int primary key)", "item")
    on_target(pair, POISON % state)
    async with pair.relay(timing=SOON) as parts:
        await parts.relay.step()
        pair.write("insert into slow values (1, -1)")
        pair.write("insert into item values (1)")
        await turned_until(parts, lambda: there(pair, "select count(*) from item") == 1)


@pytest.mark.parametrize("state", ["08006", "XX000"])
@pytest.mark.parametrize("beside", ["refused", "locked"])
async def test_a_row_that_fails_as_if_the_target_were_away_behind_one_that_is_refused(
    pair: Pair, beside: str, state: str
) -> None:
    """The first hides the second from whoever looks at the batch alone: it is held, then the second is looked for."""
    pair.create("create table slow (id int primary key, v int)", "slow")
    pair.create("create table item (id int primary key)", "item")
    on_target(pair, "alter function public.outboxd(text) set lock_timeout = '200ms'")
    on_target(pair, POISON % state, "alter table slow add check (v <> 7)")
    pair.write("insert into slow values (1, 1), (2, 1)")
    async with pair.relay(timing=SOON) as parts:
        await turned_until(parts, lambda: there(pair, "select count(*) from slow") == 2)
        with psycopg.connect(pair.target.dsn) as holder:
            if beside == "locked":
                holder.execute("select from slow where id = 1 for update")
            pair.write(
                f"update slow set v = {7 if beside == 'refused' else 8} where id = 1",
                "update slow set v = -1 where id = 2",
            )
            pair.write("insert into item values (1)")
            await turned_until(parts, lambda: there(pair, "select count(*) from item") == 1, 25)


async def test_letters_of_others_go_though_such_a_pair_goes_with_them(pair: Pair) -> None:
    """Also under another leader, who does not know which of them fail so."""
    pair.create("create table slow (id int primary key, v int)", "slow")
    pair.create("create table note (id int primary key, v int)", "note")
    on_target(
        pair,
        POISON % "08006",
        "alter table slow add check (v <> 7)",
        "alter table note add constraint small check (v < 9)",
    )

    def held() -> set[tuple[str, str]]:
        with pair.source.connect() as conn:
            return set(conn.execute("select table_name, sqlstate from outbox.held").fetchall())

    mine, theirs = {("public.slow", "23514"), ("public.slow", "08006")}, {("public.note", "23514")}
    async with pair.relay(timing=SOON) as parts:
        pair.write("insert into slow values (1, 7)")
        await turned_until(parts, lambda: len(held()) == 1)
        pair.write("insert into slow values (2, -1)")
        await turned_until(parts, lambda: held() == mine, 30)
        pair.write("insert into note values (1, 9)")
        await turned_until(parts, lambda: held() >= theirs, 30)
    async with pair.relay(timing=SOON) as parts:
        await parts.relay.step()
        on_target(pair, "alter table note drop constraint small")
        await turned_until(parts, lambda: there(pair, "select count(*) from note") == 1, 30)


async def test_one_locked_parent_of_very_many_rows(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is met where constraints are checked, so that the refusal is of no table: that of the rows is out."""
    monkeypatch.setitem(doorway._SETTINGS, "statement_timeout", "59s")
    pair.create(
        "create table child (id int primary key, n int, p int)",
        "child",
        on_target="create table parent (id int primary key); insert into parent values (1), (2);"
        "create table child (id int primary key, n int generated always as identity, p int references parent deferrable initially immediate)",
    )
    pair.create("create table item (id int primary key)", "item")
    on_target(pair, "alter function public.outboxd(text) set lock_timeout = '200ms'")
    on_target(pair, "alter function public.outboxd(text) set statement_timeout = '59s'")
    pair.write("insert into child select n, n, 1 from generate_series(1, 2300) n")
    async with pair.relay(timing=SOON, door=PostgresDoor(pair.target.dsn, deadline=60.0)) as parts:
        await turned_until(parts, lambda: there(pair, "select count(*) from child") == 2300)
        with psycopg.connect(pair.target.dsn) as holder:
            holder.execute("select from parent where id = 2 for update")
            pair.write("update child set p = 2", "insert into item values (1)")
            ended = lambda: parts.relay.status.state == "paused" or there(pair, "select count(*) from item") == 1  # noqa: E731
            await turned_until(parts, ended, 150)
            assert "22004" not in (parts.relay.status.problem or "")
            await turned_until(parts, lambda: there(pair, "select count(*) from item") == 1, 30)


async def test_who_makes_the_mirror_anew_does_not_keep_the_others_waiting(pair: Pair) -> None:
    """Each mirror has a clock of its own, and the name has one as well."""
    pair.create("create table slow (id int primary key, v int)", "slow")
    pair.create("create table item (id int primary key)", "item")
    on_target(pair, "alter function public.outboxd(text) set lock_timeout = '200ms'")
    pair.write("insert into slow select n, 1 from generate_series(1, 100) n")
    waited, n = 0, 0
    async with pair.relay(timing=SOON) as parts:
        await turned_until(parts, lambda: there(pair, "select count(*) from slow") == 100)
        for _ in range(4):
            with psycopg.connect(pair.target.dsn) as holder:
                holder.execute("select from slow for update")
                for _ in range(3):
                    n += 1
                    pair.write(f"update slow set v = 3 where id = {n}", f"insert into item values ({n})")
                    locks = {0}

                    def arrived(n: int = n, locks: set[int] = locks) -> bool:
                        locks.add(parts.relay._delivery._locks)
                        return there(pair, "select count(*) from item") == n

                    await turned_until(parts, arrived, 60)
                    waited += max(locks) >= 2
            on_target(pair, "drop table slow", "create table slow (id int primary key, v int)")
            pair.write("update slow set v = 4 where id = 100")
            parts.relay.ask_again()

            def back(n: int = n) -> bool:
                return there(pair, "select count(*) from slow where v = 3") == n and not parts.relay.copier.asked

            await turned_until(parts, back, 60)
    assert waited <= 6


async def test_letters_of_locked_rows_do_not_go_at_each_change_of_a_table(pair: Pair) -> None:
    """All that is behind them waits with each try."""
    pair.create("create table slow (id int primary key, v int)", "slow")
    pair.create("create table item (id int primary key)", "item")
    on_target(pair, "alter function public.outboxd(text) set lock_timeout = '200ms'")
    pair.write("insert into slow values (1, 1)")
    timing = Timing(poll=0.02, recheck=2.0, retry_first=0.01, retry_cap=0.05, letters=0.0)
    async with pair.relay(timing=timing) as parts:
        await turned_until(parts, lambda: there(pair, "select count(*) from slow") == 1)
        letters, tried, altered = parts.relay._letters, list[float](), 0
        again = letters.hold_again

        async def counted(*given: Any) -> None:
            tried.append(time.monotonic())
            await again(*given)

        letters.hold_again = counted  # type: ignore[method-assign,assignment]
        with psycopg.connect(pair.target.dsn) as holder:
            holder.execute("select from slow for update")
            pair.write("update slow set v = 3", "insert into item values (1)")
            await turned_until(parts, lambda: there(pair, "select count(*) from item") == 1)
            began = time.monotonic()

            def over() -> bool:
                nonlocal altered
                if time.monotonic() > began + altered:
                    altered += 1
                    on_target(pair, f"alter table item alter id set default {altered}")
                return time.monotonic() > began + 20

            await turned_until(parts, over, 60)
    assert len(tried) <= 5  # every 8 s at most, and the first


async def test_an_emitted_table_with_locked_rows_is_left_alone_for_longer(pair: Pair) -> None:
    """It is out, and each try of what waits for it is a wait for the lock."""
    pair.write("select outbox.map('public.card', array['id'])")
    on_target(pair, "create table card (id int primary key, title text)", "select outboxd.map('card')")
    on_target(pair, "insert into card select n, 'x' from generate_series(1, 10) n")
    pair.create("create table item (id int primary key)", "item")
    on_target(pair, "alter function public.outboxd(text) set lock_timeout = '200ms'")
    timing = Timing(poll=0.02, recheck=0.5, retry_first=0.01, retry_cap=0.05, letters=0.0)
    async with pair.relay(timing=timing) as parts:
        with psycopg.connect(pair.target.dsn) as holder:
            holder.execute("select from card for update")
            for n in range(1, 6):
                emit = f"""select outbox.emit('public.card', 'upsert', '{{"id": {n}, "title": "y"}}')"""
                pair.write(emit, f"insert into item values ({n})")
                arrives = lambda n=n: there(pair, "select count(*) from item") == n  # noqa: E731
                await turned_until(parts, arrives, 40)
            assert parts.relay.copier.out == {"public.card"}
            tried, apply, began = list[float](), parts.target.apply, time.monotonic()

            async def counted(*given: Any, **more: Any) -> Any:
                tried.append(time.monotonic() - began)
                return await apply(*given, **more)

            parts.target.apply = counted  # type: ignore[method-assign]
            await turned_until(parts, lambda: time.monotonic() > began + 15, 40)
    assert len(tried) <= 7


@dataclass
class FlakyDoor:
    """Breaks three times, with the request behind the one that asks which rows are locked."""

    dsn: str
    breaks: int = 3
    modes: list[str] = field(default_factory=lambda: [""])

    def __post_init__(self) -> None:
        self._door = PostgresDoor(self.dsn)

    async def send(self, document: bytes) -> str:
        mode, before = json.loads(document.split(SEPARATOR, 1)[0])["mode"], self.modes[-1]
        if mode != "describe":
            self.modes.append(mode)
        if (mode, before) == ("apply", "isolate") and self.breaks:
            self.breaks -= 1
            raise TargetError(Kind.AMBIGUOUS, "the connection failed before the answer")
        return await self._door.send(document)

    async def close(self) -> None:
        await self._door.close()


async def test_one_locked_row_counts_once_though_the_connection_breaks(pair: Pair) -> None:
    """What did not arrive is found once more: the others have waited for one row."""
    pair.create("create table slow (id int primary key, v int)", "slow")
    pair.create("create table item (id int primary key)", "item")
    on_target(pair, "alter function public.outboxd(text) set lock_timeout = '200ms'")
    pair.write("insert into slow values (1, 1)")
    async with pair.relay(timing=SOON, door=FlakyDoor(pair.target.dsn)) as parts:
        await turned_until(parts, lambda: there(pair, "select count(*) from slow") == 1)
        with psycopg.connect(pair.target.dsn) as holder:
            holder.execute("select from slow for update")
            pair.write("update slow set v = 3", "insert into item values (1)")
            outs = set[str]()

            def arrived() -> bool:
                outs.update(parts.relay.copier.out)
                return there(pair, "select count(*) from item") == 1

            await turned_until(parts, arrived, 60)
    assert outs == set()


async def test_a_row_whose_parent_is_locked_for_an_instant_is_no_letter(pair: Pair) -> None:
    """The parent goes on with this very batch, beside a row that is refused for good; so does what refers to it."""
    ddl = "create table p (id int primary key, g int); create table c (id int primary key, p int); create table bad (id int primary key, v int)"
    on = """create table g (id int primary key); insert into g values (1); create table p (id int primary key, g int references g);
      create table c (id int primary key, p int references p); create table bad (id int primary key, v int check (v <> 7))"""
    pair.create(ddl, "p", "c", "bad", on_target=on)
    async with pair.relay(timing=SOON) as parts:
        await parts.relay.step()
        isolate = parts.target.isolate
        with psycopg.connect(pair.target.dsn) as holder:
            holder.execute("select from g for update")

            async def then_let_go(*given: Any, **more: Any) -> Any:
                answer = await isolate(*given, **more)
                holder.rollback()
                return answer

            parts.target.isolate = then_let_go  # type: ignore[method-assign]
            pair.write("insert into bad values (1, 7)", "insert into p values (1, 1)", "insert into c values (1, 1)")
            held = set[str]()

            def arrived() -> bool:
                with pair.source.connect() as conn:
                    held.update(table for (table,) in conn.execute("select table_name from outbox.held"))
                return there(pair, "select count(*) from p") == 1

            await turned_until(parts, arrived)
    assert held == {"public.bad"}
