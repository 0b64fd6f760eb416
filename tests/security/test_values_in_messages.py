"""Row values in messages (promise I10): code of others that speaks in our name, or under any SQLSTATE, is not repeated."""

from typing import Any

import psycopg
import pytest

from daemon.refusal_words import spoken, told_of
from daemon.session import failure
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import Pair, Start, streaming, wait_until
from tests.canaries import assert_clean, planted

VAULT = "create table vault (id text primary key, body text)"
SAYS = "outboxd.unknown_op(%s)"  # raises OB006 with what it is given, in our own words

# By name: what the owner of a mirror makes there, so that a message of ours has a row's value in it.
WAYS = {
    "a CHECK that calls ours": ["alter table vault add check (outboxd.unknown_op(body) is null)"],
    "a CHECK, a function in SQL, ours": [
        "create function says(text) returns text language sql as 'select outboxd.unknown_op($1)'",
        "alter table vault add check (says(body) is null)",
    ],
    "a CHECK, a function in PL/pgSQL, ours": [
        "create function says(text) returns text language plpgsql as 'begin return outboxd.unknown_op($1); end'",
        "alter table vault add check (says(body) is null)",
    ],
    "a domain that calls ours": [
        "create domain told as text check (outboxd.unknown_op(value) is null)", "alter table vault alter body type told",
    ],
    "a trigger with every field": [
        ("create function says() returns trigger language plpgsql as $$ begin raise exception '%', new.body using errcode = 'OB006', "
        "detail = new.body, hint = new.body, column = new.body, constraint = new.body, table = new.body, schema = new.body; end $$"),
        "create trigger says before insert on vault for each row execute function says()",
    ],
    "a trigger, a block, ours": [
        "create function says() returns trigger language plpgsql as $$ begin perform outboxd.unknown_op(new.body); return new; end $$",
        "create trigger says before insert on vault for each row execute function says()",
    ],
    "a trigger at the end, ours": [
        "create function says() returns trigger language plpgsql as $$ begin perform outboxd.unknown_op(new.body); return new; end $$",
        "create constraint trigger says after insert on vault deferrable initially deferred for each row execute function says()",
    ],
    "a cast that quotes": ["alter table vault add check (body::int > 0)"],
}  # fmt: skip


@pytest.fixture
def vault(rest: Pair) -> Pair:
    for database, ready in (
        (rest.source, "select outbox.watch('vault')"),
        (rest.target, "select outboxd.map('vault')"),
    ):
        with database.connect() as conn:
            conn.execute(VAULT)
            conn.execute(ready.encode())
    return rest


def test_nobody_speaks_in_our_name(vault: Pair, start: Start) -> None:
    """Each way in turn: the row is held or its table is out; log, pages, commands and letters have no value."""
    outboxd = streaming(start({**vault.settings, "log_level": "debug"}))
    cli = Cli({**vault.settings, "admin_port": str(outboxd.port)})
    said: dict[str, str] = {}
    for number, (name, making) in enumerate(WAYS.items()):
        with vault.target.connect(autocommit=False) as conn:
            for statement in ("truncate vault", *making):
                conn.execute(statement.encode())
        lines = outboxd.log.read_text()
        vault.write("insert into vault values (%s, %s)", f"{number}", planted(f"way-{number}"))

        def troubled(before: str = lines) -> bool:
            text = outboxd.log.read_text()
            return any(text.count(word) > before.count(word) for word in ("turn_failed", "changes_held", "table_out"))

        wait_until(troubled)
        said |= {f"{page} at {name}": outboxd.get(page)[1] for page in ("/readyz", "/api/status", "/metrics")}
        told = cli("dead-letters", "list", "--json")
        said[f"letters at {name}"] = told.out + told.err
        with vault.target.connect() as conn:
            conn.execute(
                "drop table vault cascade; drop function if exists says(text), says(); drop domain if exists told"
            )
            conn.execute(VAULT)
        wait_until(lambda: not (outboxd.status() or {}).get("problem"), 60)
    for command in ("status", "check"):
        told = cli(command)
        said[command] = told.out + told.err
    said["the log"] = outboxd.log.read_text()
    assert_clean(said)


@pytest.mark.parametrize("way", [name for name in WAYS if name != "a cast that quotes"])
def test_the_door_tells_nothing_that_others_say(target: Any, way: str) -> None:
    """By the door's own answer: no message comes with it."""
    with target.connect() as conn:
        conn.execute(VAULT)
        conn.execute("select outboxd.map('vault')")
        for statement in WAYS[way]:
            conn.execute(statement.encode())
        header = (
            '{"mode":"apply","relay":"r","epoch":1,"batch_no":1,"digest":"d","cursor":{"snapshot":"3:3:","floor_id":0}}'
        )
        conn.execute("""select outboxd.door('{"mode":"claim","relay":"r"}')""")
        group = '{"table":"public.vault","op":"upsert","rank":0,"columns":["id","body"]}\x1e[{"id":"1","body":"zqcanaryqz"}]'
        ((answer,),) = conn.execute("select outboxd.door(%s)", (f"{header}\x1e{group}",)).fetchall()
    assert answer["answer"] == "refused"
    assert "zqcanaryqz" not in str(answer)


def test_our_own_sentence_is_told(target: Any) -> None:
    """Or nobody would know what to do."""
    with target.connect() as conn:
        conn.execute(VAULT)
        conn.execute('select outboxd.map(\'vault\'), outboxd.door(\'{"mode":"claim","relay":"r"}\')')
        header = (
            '{"mode":"apply","relay":"r","epoch":1,"batch_no":1,"digest":"d","cursor":{"snapshot":"3:3:","floor_id":0}}'
        )
        group = '{"table":"public.vault","op":"nonsense","rank":0,"columns":["id"]}\x1e[{"id":"1"}]'
        ((answer,),) = conn.execute("select outboxd.door(%s)", (f"{header}\x1e{group}",)).fetchall()
    assert "run `outboxd setup target`" in answer["more"]["message"]


@pytest.mark.parametrize(
    ("sqlstate", "context", "told"),
    [
        ("42P01", "", True),
        ("22P02", "", False),
        ("23505", "", False),
        ("P0001", "PL/pgSQL function outbox.watch(regclass) line 3 at RAISE", True),
        ("22023", "PL/pgSQL function outbox.watch(regclass) line 3 at RAISE\nSQL function \"x\" statement 1", False),
        ("22P02", "PL/pgSQL function outbox.watch(regclass) line 3 at assignment", False),
        ("42501", "PL/pgSQL function public.says() line 1 at RAISE", False),
        ("42501", "PL/pgSQL function inline_code_block line 1 at RAISE", False),
        ("42501", "PL/Python function \"says\"", False),
        ("OB002", "PL/pgSQL function public.says() line 1 at RAISE\nPL/pgSQL function outbox.emit(text) line 1 at PERFORM", False),
    ],
)  # fmt: skip
def test_a_command_repeats_what_speaks_of_no_row(sqlstate: str, context: str, told: bool) -> None:
    words = told_of(sqlstate, "it is zqcanaryqz", context, "Error")
    assert ("zqcanaryqz" in words) is told
    assert told or sqlstate in words
    assert (spoken(sqlstate, "it is zqcanaryqz", context) is not None) is told


def test_a_filter_that_refuses_says_no_value(source: Any) -> None:
    """A function of the application's, under the SQLSTATE of a missing right: the daemon's sentence has its own words."""
    with source.connect() as conn:
        conn.execute(
            "create function says(text) returns boolean language plpgsql as "
            "$$ begin raise exception 'no %', $1 using errcode = '42501'; end $$"
        )
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            conn.execute("select says('zqcanaryqz')")
    assert "zqcanaryqz" not in str(failure(caught.value))
