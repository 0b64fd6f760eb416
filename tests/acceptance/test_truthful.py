"""`outboxd status`, /api/status and the metrics say one thing, by one rule: "in sync" only when it is so (promise I9)."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.admin import Admin, Views
from daemon.demo.child import Outboxd
from daemon.demo.process import free_port
from daemon.verdict import IN_SYNC
from tests.acceptance.cli import Cli, Said
from tests.acceptance.conftest import STORIES, Pair, Start, ended, measured, streaming, wait_until
from tests.databases import Database, clone

STORY = 'public."Story"'
QUIET = {"verify_interval": "0"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def another(_source_template: Database) -> Iterator[Database]:
    """Another database of the same cluster, with outboxd's side and nothing in it."""
    with clone(_source_template) as database:
        yield database


@pytest.fixture
def empty(_target_template: Database) -> Iterator[Database]:
    """Another project: the tables are there, mapped, and no row."""
    with clone(_target_template) as database:
        database.install("example_mirror.sql")
        with database.connect() as conn:
            for title in ("Story", "Prompt", "Scenario", "VideoAsset"):
                conn.execute("select outboxd.map(%s)", (f'public."{title}"',))
        yield database


def status(pair: Pair, daemon: Outboxd | None = None, **settings: str) -> tuple[int, dict[str, Any]]:
    port = daemon.port if daemon else free_port()
    said: Said = Cli(pair.settings)("status", "--json", **{"admin_port": str(port), **settings})
    return said.code, said.json()


def kinds(told: dict[str, Any]) -> list[str]:
    return [one["kind"] for one in told["findings"]]


def synced(pair: Pair, start: Start, **settings: str) -> Outboxd:
    """A daemon that leads, of stores that are in sync."""
    daemon = streaming(start({**pair.settings, **QUIET, **settings}))
    wait_until(lambda: (daemon.status() or {})["verdict"] == IN_SYNC)
    return daemon


def becomes(pair: Pair, daemon: Outboxd, kind: str) -> dict[str, Any]:
    """Wait until the daemon's page has this as its worst; the command, and the metrics, then say the same."""

    def said() -> bool:
        found = (daemon.status() or {}).get("findings", [])
        return [one["kind"] for one in found][:1] == [kind]

    wait_until(said)
    code, told = status(pair, daemon)
    assert (code, kinds(told)[:1]) == (3, [kind]), told["verdict"]
    assert measured(daemon, f'outboxd_findings{{kind="{kind}"}}') >= 1
    assert measured(daemon, "outboxd_in_sync") == 0
    return told


def well(pair: Pair, daemon: Outboxd) -> None:
    wait_until(lambda: (daemon.status() or {})["verdict"] == IN_SYNC, 40)
    assert status(pair, daemon)[0] == 0
    assert measured(daemon, "outboxd_in_sync") == 1


def test_in_sync_is_said_by_all_of_them(direct: Pair, start: Start) -> None:
    daemon = synced(direct, start)
    direct.write(STORIES, 3)
    direct.arrives()
    well(direct, daemon)
    code, told = status(direct, daemon)
    assert (code, told["verdict"], told["findings"], told["away"]) == (0, IN_SYNC, [], [])


def test_a_target_that_nobody_writes(direct: Pair, start: Start, empty: Database) -> None:
    """A shell with the address of another project, while the daemon leads at the right one and nothing waits."""
    daemon = synced(direct, start, heartbeat_interval="0.2", retention="2")
    direct.write(STORIES, 3)
    direct.arrives()
    left = "select from outbox.change where table_name <> 'outboxd.heartbeat'"
    wait_until(lambda: not direct.ask(direct.source, left))
    well(direct, daemon)
    code, told = status(direct, target_dsn=empty.dsn)
    assert (code, kinds(told)[:1]) == (3, ["source"])
    assert "is new to this relay" in told["verdict"]


def test_nobody_leads(direct: Pair, start: Start) -> None:
    """Everything is equal, and the daemon is gone: it is not in sync, with and without changes that wait."""
    assert synced(direct, start).stop() == 0
    code, told = status(direct)
    assert (code, kinds(told)) == (3, ["unled"])
    assert told["verdict"] == "nobody leads, so nothing moves: `outboxd run`; nothing waits"
    direct.write(STORIES, 20)
    with direct.source.connect() as conn:
        conn.execute("update outbox.change set created_at = created_at - interval '65 s'")
    code, told = status(direct)
    assert code == 3
    assert told["verdict"] == (
        "nobody leads, so nothing moves: `outboxd run`; 20 changes wait safely in Postgres (the oldest for 65 s)"
    )
    assert ended(start(direct.settings, "run", "--until-idle")) == 0
    direct.arrives(0)


def test_a_watched_table_that_the_target_lacks(direct: Pair, start: Start) -> None:
    """Its rows are uncopied, no change has been made since: nothing has tried it yet, and it is said all the same."""
    daemon = synced(direct, start)
    direct.write(
        "create table news (id int primary key, title text); insert into news select i, 'x' from generate_series(1, 30) i"
    )
    assert Cli(direct.settings)("watch", "news").code == 0
    told = becomes(direct, daemon, "missing")
    assert told["verdict"].startswith("public.news is not on the target: `outboxd schema apply`")
    assert Cli(direct.settings)("schema", "apply", "--yes").code == 0
    well(direct, daemon)
    assert direct.ask(direct.target, "select count(*) from news") == [(30,)]
    with direct.target.connect() as conn:
        conn.execute("drop table news")


def test_a_target_that_is_named_and_not_there(direct: Pair, start: Start) -> None:
    daemon = synced(direct, start)
    assert Cli(direct.settings)("watch", "Story", "--target", "public.tale").code == 0
    told = becomes(direct, daemon, "unfit")
    assert "public.tale" in told["verdict"]
    assert "outboxd schema plan" in told["verdict"]


def test_rows_that_are_held(direct: Pair, start: Start) -> None:
    """The verdict counts them, and so does the line of their table, also when it was verified before."""
    with direct.target.connect() as conn:
        conn.execute("""alter table "Story" add constraint tame check (title <> 'story 2')""")
    daemon = synced(direct, start)
    direct.write(STORIES, 3)
    told = becomes(direct, daemon, "held")
    assert told["verdict"] == "1 row held as dead letters: `outboxd dead-letters list`"
    [line] = [one for one in told["verifications"] if one["table"] == STORY]
    assert (told["held_keys"], line["held"]) == (1, 1)
    shown = Cli(direct.settings)("status", admin_port=str(daemon.port)).out.splitlines()
    [row] = [line.split() for line in shown if line.startswith(STORY)]
    assert row[4] == "1", row


def test_another_database_as_source(direct: Pair, another: Database, start: Start) -> None:
    """The command's source is another one than the daemon's: neither its daemon's word counts, nor is it in sync."""
    daemon = synced(direct, start)
    direct.write(STORIES, 3)
    direct.arrives()
    with another.connect() as conn:
        conn.execute("create table story (id int primary key)")
        conn.execute("select outbox.watch('story')")
    code, told = status(direct, daemon, source_dsn=another.dsn)
    assert (code, kinds(told)[0]) == (3, "source"), told["verdict"]
    assert told["daemon"] == "the daemon of another source answers here"
    assert "leads" not in told
    well(direct, daemon)


def test_before_setup_neither_store_is_down(direct: Pair) -> None:
    """Both are up, and lack outboxd's side: each is named with its command, and the exit code says that a person is needed."""
    with direct.target.connect() as conn:
        conn.execute("drop function public.outboxd(text); drop schema outboxd cascade")
    code, told = status(direct)
    assert (code, told["away"], kinds(told)[0]) == (3, [], "setup")
    assert "outboxd setup target" in told["verdict"]
    with direct.source.connect() as conn:
        conn.execute("drop schema outbox cascade")
    code, told = status(direct)
    assert (code, told["away"], kinds(told)) == (3, [], ["setup", "setup"])
    assert "outboxd setup source" in told["verdict"]


def test_a_table_that_is_captured_no_more(direct: Pair, start: Start) -> None:
    """Its triggers sleep: what is written now is lost to the target, so this comes before everything else."""
    daemon = synced(direct, start)
    direct.write('alter table "Story" disable trigger all')
    told = becomes(direct, daemon, "uncaptured")
    assert told["verdict"].startswith(f"{STORY} is not captured, disabled or not ALWAYS: ")
    assert f"`outboxd watch '{STORY}'`" in told["verdict"]
    assert Cli(direct.settings)("watch", "Story").code == 0
    well(direct, daemon)


def test_a_table_whose_rows_take_too_long_to_be_copied(direct: Pair, start: Start) -> None:
    """One row takes longer than a range may: it is set aside, and said to be. The verdict's kind is that of any copy."""
    daemon = synced(direct, start, batch_changes="1")
    direct.write(
        "create function nap(int) returns boolean language plpgsql immutable as 'begin perform pg_sleep(4); return true; end'"
    )
    table = "create table tome (id int primary key, body text)"
    direct.write(f"{table}; insert into tome values (1, 'quite private')")
    with direct.target.connect() as conn:
        conn.execute(table.encode())
    assert Cli(direct.settings)("watch", "tome", "--where", "public.nap(id)").code == 0
    slow = "slow: one row at a time (large rows, or a slow filter)"
    wait_until(lambda: slow in (daemon.status() or {})["verdict"], 60)
    told = becomes(direct, daemon, "uncopied")
    assert told["verdict"].startswith(f"copying public.tome: 0 rows, {slow}")
    [copy] = [one for one in (daemon.status() or {})["copies"] if one["table"] == "public.tome"]
    assert (copy["reason"], copy["slow"]) == (slow, 1)
    assert "quite private" not in str(told) + str(daemon.status())
    with direct.target.connect() as conn:
        conn.execute("drop table tome")


def test_a_column_left_at_home_that_must_have_a_value(direct: Pair, start: Start) -> None:
    """New rows will be refused: that is said before one is. The plan lets it be null, and then it is."""
    table = "create table note (id int primary key, secret text not null)"
    direct.write(f"{table}; insert into note select i, 'secret' from generate_series(1, 5) i")
    with direct.target.connect() as conn:
        conn.execute(table.encode())
    assert Cli(direct.settings)("watch", "note").code == 0
    daemon = synced(direct, start)
    assert Cli(direct.settings)("watch", "note", "--exclude", "secret").code == 0
    told = becomes(direct, daemon, "unfit")
    said = "public.note does not fit on the target, secret must have a value there, and none is sent: `outboxd schema plan public.note`"
    assert told["verdict"] == said
    direct.write("insert into note values (6, 'another')")
    wait_until(lambda: (daemon.status() or {})["held_keys"] == 1)
    done = Cli(direct.settings)("schema", "apply", "--yes")
    assert (done.code, "not null secret" in done.err) == (3, True), "to drop it is left to a person"
    well(direct, daemon)
    assert direct.ask(direct.target, "select count(*), count(secret) from note") == [(6, 0)]
    with direct.target.connect() as conn:
        conn.execute("drop table note")


def test_whoever_answers_on_the_port_may_be_another(direct: Pair, start: Start) -> None:
    """Another relay's daemon: neither status nor the probe takes its word."""
    daemon = synced(direct, start, relay="other")
    code, told = status(direct, daemon)
    assert (code, kinds(told)) == (3, ["unled"])
    assert told["verdict"].startswith("relay other leads this source, and this one does not")
    assert told["daemon"] == "another relay's daemon answers here"
    probed = Cli({"admin_port": str(daemon.port)})("status", "--probe")
    assert probed.code == 1
    assert "is not this one: the daemon of relay other answers there" in probed.err
    assert Cli({"admin_port": str(daemon.port), "relay": "other"})("status", "--probe").code == 0


def test_a_probe_asks_the_source_whose_daemon_it_is(direct: Pair, another: Database, start: Start) -> None:
    """By the same relay's name another application's daemon answers. Where the source cannot say, the name has to do."""
    daemon = synced(direct, start)
    with another.connect() as conn:
        conn.execute("update outbox.installation set id = gen_random_uuid()")

    def probe(source: str) -> Said:
        return Cli({"admin_port": str(daemon.port), "source_dsn": source})("status", "--probe")

    said = probe(another.dsn)
    assert said.code == 1
    assert "is not this one: the daemon of another installation of schema outbox answers there" in said.err
    assert probe(direct.source.dsn).code == 0
    assert probe(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing").code == 0
    assert Cli({"admin_port": str(daemon.port)})("status", "--probe").code == 0


async def test_a_status_takes_no_other_installations_word(direct: Pair, start: Start) -> None:
    """Its page is this daemon's, but for the installation. A page says which one is there now."""
    daemon = await asyncio.to_thread(synced, direct, start)
    page = daemon.status() or {}
    page["source"]["installation"] = "00000000-0000-0000-0000-000000000000"
    admin = Admin(Views(lambda: True, lambda: (True, {}), lambda: page, lambda: (b"", "")), "127.0.0.1", 0)
    serving = asyncio.create_task(admin.run())
    try:
        said = await asyncio.to_thread(Cli(direct.settings), "status", "--json", admin_port=str(admin.port))
        assert said.json()["daemon"] == "the daemon of another installation of schema outbox answers here"
        assert "state" not in said.json()
    finally:
        serving.cancel()
        await asyncio.wait([serving])
    direct.write("update outbox.installation set id = '11111111-1111-1111-1111-111111111111'")
    await asyncio.to_thread(
        wait_until, lambda: (daemon.status() or {})["source"]["installation"].startswith("11111111-")
    )


async def test_a_probe_takes_no_other_servers_word() -> None:
    """A page that is no daemon's answers 200 to everything."""
    admin = Admin(Views(lambda: True, lambda: (True, {}), dict, lambda: (b"", ""), relay="another"), "127.0.0.1", 0)
    serving = asyncio.create_task(admin.run())
    try:
        said = await asyncio.to_thread(Cli({"admin_port": str(admin.port)}), "status", "--probe")
        assert said.code == 1
    finally:
        serving.cancel()
        await asyncio.wait([serving])


def test_equal_as_of_one_time(direct: Pair, start: Start) -> None:
    """Once every table was compared: one time, the earliest, and how many rows; nothing of it while a row is held."""
    direct.write(STORIES, 5)
    daemon = streaming(start(direct.settings))
    direct.arrives()
    wait_until(lambda: (daemon.status() or {})["equal"])
    code, told = status(direct, daemon)
    assert code == 0, told["verdict"]
    assert (told["equal"]["tables"], told["equal"]["through"]) == (4, min(v["through"] for v in told["verifications"]))
    shown = Cli(direct.settings)("status", admin_port=str(daemon.port)).out
    assert f"equal            as of {told['equal']['through']}, 4 tables, " in shown


def test_of_a_key_that_was_widened(direct: Pair, start: Start) -> None:
    """Two rows of the source would be one there: nothing is written, and it is said."""
    with direct.source.connect() as conn:
        conn.execute("create table tag (id int primary key, tenant text not null)")
    daemon = synced(direct, start)
    assert Cli(direct.settings)("watch", "tag").code == 0
    assert Cli(direct.settings)("schema", "apply", "--yes").code == 0
    with direct.source.connect() as conn:
        conn.execute("insert into tag values (7, 'z')")
        wait_until(lambda: direct.ask(direct.target, "select tenant from tag") == [("z",)])  # it is known there by now
        conn.execute("delete from tag")
    wait_until(lambda: direct.ask(direct.target, "select tenant from tag") == [])
    well(direct, daemon)
    with direct.source.connect() as conn:
        conn.execute("insert into tag values (1, 'a')")
        conn.execute("alter table tag drop constraint tag_pkey; alter table tag add primary key (id, tenant)")
    assert Cli(direct.settings)("watch", "tag").code == 0
    with direct.source.connect() as conn:
        conn.execute("insert into tag values (1, 'b')")
    wait_until(lambda: status(direct, daemon)[0] == 3)
    assert direct.ask(direct.target, "select tenant from tag") in ([], [("a",)])
    assert "the key of public.tag is (id, tenant)" in Cli(direct.settings)("check").out
