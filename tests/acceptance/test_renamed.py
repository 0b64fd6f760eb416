"""A watched table that has another name by now: what the commands advise, pasted, ends with both stores equal."""

import shlex
from pathlib import Path

import pytest

from tests.acceptance.cli import Cli
from tests.acceptance.conftest import Pair, Start, streaming, wait_until

QUIET = {"verify_interval": "0"}
MADE = """create schema if not exists app; create table app.item (id int primary key, note text, secret text);
alter table app.item enable row level security"""
ROWS = "insert into app.item select i, 'note ' || i, 'secret' from generate_series(1, 20) i"
RENAMES = {
    "renamed": ('alter table app.item rename to "Thing"', 'app."Thing"'),
    "in another schema": ("alter table app.item set schema public", "public.item"),
    "its schema renamed": ("alter schema app rename to shop", "shop.item"),
    "both": ("create schema attic; alter table app.item rename to thing; alter table app.thing set schema attic", "attic.thing"),
}  # fmt: skip
BETWEEN = ["insert into {} values (21, 'between', 'secret')", "update {} set note = 'x', id = 102 where id = 2",
           "delete from {} where id = 3", "delete from {} where id = 4"]  # fmt: skip
AFTER = ["insert into {} values (3, 'again', 'secret'), (22, 'after', 'secret')", "update {} set note = 'y' where id in (5, 102)",
         "delete from {} where id in (6, 21)"]  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def item(direct: Pair) -> Pair:
    """Watched with a key of its own, a mask and a filter."""
    for store in (direct.source, direct.target):
        with store.connect() as conn:
            conn.execute(MADE.encode())
    cli = Cli(direct.settings)
    said = cli("watch", "app.item", "--mask", "secret=null", "--where", "id <> 7", "--on-error", "halt")
    assert said.code == 0, said
    direct.write(ROWS)
    return direct


def do(pair: Pair, statements: list[str], table: str) -> None:
    for statement in statements:
        pair.write(statement.format(table))


def equal(pair: Pair, here: str, there: str = "app.item") -> bool:
    """Are the rows that travel as they should be?"""
    wanted = pair.ask(pair.source, f"select id, note, null::text from {here} where id <> 7 order by 1")
    return wanted == pair.ask(pair.target, f"select id, note, secret from {there} order by 1")


def advised(cli: Cli, name: str) -> list[str]:
    """What the doctor says is to be pasted."""
    pasted = shlex.split(cli.found()[name]["fix"])
    assert pasted[0] == "outboxd", pasted
    return pasted[1:]


def watched(pair: Pair) -> list[tuple[object, ...]]:
    return pair.ask(
        pair.source,
        "select table_name, mask::text, filter, target, on_error from outbox.watched where table_name !~ '^public.\"[A-Z]'",
    )


@pytest.mark.parametrize("how", RENAMES)
def test_it_goes_on_by_its_new_name(item: Pair, start: Start, how: str) -> None:
    """Into the mirror that it had, with its mask: rows written before, between and after arrive."""
    ddl, name = RENAMES[how]
    daemon = streaming(start({**item.settings, **QUIET}))
    cli = Cli({**item.settings, **QUIET, "admin_port": str(daemon.port)})
    wait_until(lambda: equal(item, "app.item"))
    item.write(ddl)
    do(item, BETWEEN, name)
    wait_until(lambda: equal(item, name))
    wait_until(lambda: (daemon.status() or {})["verdict"].startswith("app.item is called"))
    said = cli("status")
    assert (said.code, f"app.item is called {name} now" in said.out, "unwatch" in said.out) == (3, True, False)
    assert cli(*advised(cli, "app.item")).code == 0
    do(item, AFTER, name)
    wait_until(lambda: equal(item, name))
    assert watched(item) == [(name, '{"secret": "null"}', "id <> 7", "app.item", "halt")]
    wait_until(lambda: (daemon.status() or {})["verdict"] == "in sync: nothing needs you")
    assert cli("verify", name).code == 0
    assert cli.found() == {}
    item.write(f"truncate {name}")
    wait_until(lambda: equal(item, name))


@pytest.mark.parametrize("how", RENAMES)
def test_while_nobody_leads(item: Pair, how: str) -> None:
    """Changes by either name wait side by side, of one row as well."""
    ddl, name = RENAMES[how]
    cli = Cli({**item.settings, **QUIET})
    assert cli("run", "--until-idle").code == 0
    item.write(ddl)
    do(item, BETWEEN, name)
    assert cli(*advised(cli, "app.item")).code == 0
    do(item, AFTER, name)
    assert cli("run", "--until-idle").code == 0
    assert equal(item, name)
    assert cli("verify", name).code == 0


def test_where_its_mirror_was_renamed_alike(item: Pair) -> None:
    """It goes on there. Until then its changes wait for somebody to say so."""
    cli = Cli({**item.settings, **QUIET})
    assert cli("run", "--until-idle").code == 0
    for store in (item.source, item.target):
        with store.connect() as conn:
            conn.execute("alter table app.item rename to thing")
    do(item, BETWEEN, "app.thing")
    assert cli("run", "--until-idle").code == 0
    assert cli(*advised(cli, "app.item")).code == 0
    do(item, AFTER, "app.thing")
    assert cli("run", "--until-idle").code == 0
    assert cli("run", "--until-idle").code == 0  # what waited by the old name is looked at again, and is over
    assert equal(item, "app.thing", "app.thing")
    assert cli.found() == {}


SQL = """select outbox.unwatch('app.item');
select outbox.watch('app.thing', target => 'app.item', filter => 'id <> 7', mask => '{"secret": "null"}')"""


@pytest.mark.parametrize("by", ["the command", "SQL"])
def test_while_it_is_out(item: Pair, by: str) -> None:
    """What waits by the old name is over once it is copied by the new one: sent, it would write over newer rows."""
    cli = Cli({**item.settings, **QUIET})
    assert cli("run", "--until-idle").code == 0
    with item.target.connect() as conn:
        conn.execute("alter table app.item rename column note to other")
    do(item, BETWEEN[:2], "app.item")
    assert cli("run", "--until-idle").code == 0
    item.write("alter table app.item rename to thing")
    do(item, BETWEEN[2:], "app.thing")
    assert cli("run", "--until-idle").code == 0
    if by == "SQL":  # mended before: the copy by the new name is a first one, without prune
        with item.target.connect() as conn:
            conn.execute(
                "alter table app.item rename column other to note; select outboxd.map('app.item', 'app.thing')"
            )
        item.write(SQL)
    else:
        assert cli(*advised(cli, "app.item")).code == 0
    do(item, AFTER, "app.thing")
    assert cli("run", "--until-idle").code == 0
    if by == "the command":
        with item.target.connect() as conn:
            conn.execute("alter table app.item rename column other to note")
    for _ in range(4):
        assert cli("run", "--until-idle").code == 0
    assert equal(item, "app.thing")
    assert cli.found() == {}


def test_a_view_has_its_name(item: Pair) -> None:
    """For those who still read by the old one. What was written meanwhile comes with the copy."""
    cli = Cli({**item.settings, **QUIET})
    assert cli("run", "--until-idle").code == 0
    item.write("alter table app.item rename to thing; create view app.item as select * from app.thing")
    do(item, BETWEEN, "app.thing")
    assert "app.item is not captured, called app.thing now" in cli("status").out
    assert cli(*advised(cli, "app.item")).code == 0
    do(item, AFTER, "app.thing")
    assert cli("run", "--until-idle").code == 0
    assert equal(item, "app.thing")


def test_another_table_has_its_name(item: Pair) -> None:
    """Both go on: the one that was renamed keeps its mask and gets a place of its own."""
    cli = Cli({**item.settings, **QUIET})
    assert cli("run", "--until-idle").code == 0
    item.write("alter table app.item rename to former; create table app.item (like app.former including all)")
    with item.target.connect() as conn:
        conn.execute(
            "create table app.former (like app.item including all); alter table app.former enable row level security"
        )
    item.write("insert into app.item values (1, 'new', 'secret')")
    assert "watch app.former first" in cli.found()["app.item"]["what"]
    assert cli("watch", "app.former").code == 0
    assert cli(*advised(cli, "app.item")).code == 0
    do(item, BETWEEN, "app.former")
    do(item, AFTER, "app.item")
    assert cli("run", "--until-idle").code == 0
    assert equal(item, "app.item")
    assert equal(item, "app.former", "app.former")
    assert [row[1] for row in watched(item)] == ['{"secret": "null"}'] * 2


def test_what_is_said_wins_over_what_it_was(item: Pair) -> None:
    cli = Cli({**item.settings, **QUIET})
    item.write("alter table app.item rename to thing")
    said = cli("watch", "app.thing", "--target", "app.elsewhere", "--where", "id > 1")
    assert "it was watched as app.item, and goes on as that was" in said.err
    assert watched(item) == [("app.thing", '{"secret": "null"}', "id > 1", '"app"."elsewhere"', "halt")] or watched(
        item
    ) == [("app.thing", '{"secret": "null"}', "id > 1", "app.elsewhere", "halt")]


def test_what_the_configuration_says_by_the_old_name_is_named(item: Pair) -> None:
    """It says nothing of the table any more: who may see it, say."""
    cli = Cli({**item.settings, **QUIET})
    item.write("alter table app.item rename to thing")
    Path("outboxd.toml").write_text("""[tables."app.item"]\nmask = { secret = "null" }\naccess = "public_read"\n""")
    assert list(cli.found()) == ["app.item"]
    assert "[tables] is to name it by its name of now" in cli(*advised(cli, "app.item")).err
    assert cli.found()["app.item"]["what"].startswith("[tables] names it, and the source has no such table")
    Path("outboxd.toml").write_text("""[tables."app.thing"]\nmask = { secret = "null" }\naccess = "public_read"\n""")
    assert cli.found() == {}


def test_to_unwatch_it_is_asked_for(item: Pair) -> None:
    """By the old name; whoever gives the one it has means it."""
    cli = Cli({**item.settings, **QUIET})
    item.write("alter table app.item rename to thing")
    said = cli("unwatch", "app.item")
    assert (said.code, "to go on under that name: outboxd watch app.thing" in said.err) == (1, True)
    assert len(watched(item)) == 1
    assert cli("unwatch", "app.item", "--yes").code == 0
    assert cli("watch", "app.thing").code == 0
    item.write("alter table app.thing rename to item")
    said = cli("unwatch", "app.item")
    assert (said.code, "app.thing is called app.item now" in said.err, watched(item)) == (0, True, [])


def test_a_table_that_is_gone_is_unwatched_unasked(item: Pair) -> None:
    cli = Cli({**item.settings, **QUIET})
    item.write("drop table app.item; create view app.item as select 1 as id")
    assert advised(cli, "app.item") == ["unwatch", "app.item"]
    assert cli("unwatch", "app.item").code == 0
    assert watched(item) == []
