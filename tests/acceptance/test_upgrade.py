"""A new version of outboxd: old daemon on new SQL, new daemon on old SQL. The next version is this one, with one more
migration on each side, in a folder of its own; its daemon and its commands are real processes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemon.demo.child import Outboxd
from daemon.demo.writer import Writer
from outbox.migrations import FILES, Side, migrations
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import STORIES, Pair, Start, streaming, wait_until

SIDES: list[Side] = ["source", "target"]
SCHEMA = {"source": "outbox", "target": "outboxd"}
# What a later version may do: a column, a table, a function more; and every function replaced by itself.
_ADDED = {
    "source": "alter table outbox.change add column if not exists later text;"
    " alter table outbox.watched add column if not exists later int not null default 1;",
    "target": "alter table outboxd.cursor add column if not exists later text;"
    " alter table outboxd.mirror add column if not exists later int not null default 1;",
}
_NEXT = """
{added}
create table if not exists {schema}.later (id int primary key);
create or replace function {schema}.later() returns int language sql as 'select 1';
{all_again}
"""


_QUEUED = """
select exists (select from pg_locks l join pg_database d on d.oid = l.database
                where d.datname = current_database() and not l.granted and l.mode = 'AccessExclusiveLock')
"""


@dataclass(frozen=True)
class Version:
    """A whole outboxd in a folder."""

    folder: Path

    @property
    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(self.folder)}

    def run(self, settings: Mapping[str, str], *arguments: str) -> str:
        """A command of this version; what it said."""
        named = {f"OUTBOXD_{name.upper()}": value for name, value in settings.items()}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "daemon", *arguments], cwd=self.folder, capture_output=True, text=True,
            timeout=120, check=False, env={**os.environ, **named, **self.environment},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def later(folder: Path) -> Version:
    """The next version."""
    made = folder / "later"
    for room in ("daemon", "outbox", "sql"):
        shutil.copytree(FILES.parent / room, made / room, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    for side in SIDES:
        known = migrations(side)
        text = _NEXT.format(added=_ADDED[side], schema=SCHEMA[side], all_again="\n".join(each.sql for each in known))
        (made / "sql" / side / f"{known[-1].version + 1:04}_later.sql").write_text(text)
    return Version(made)


def newest(side: Side) -> int:
    return migrations(side)[-1].version


def paused(outboxd: Outboxd, *words: str) -> None:
    """Wait until it waits for a person, and says these words."""

    def told() -> bool:
        assert outboxd.returncode is None, outboxd.last_words()
        status = outboxd.status() or {}
        return status.get("state") == "paused" and all(word in str(status.get("problem")) for word in words)

    wait_until(told, 60)


def test_an_old_daemon_goes_on_while_the_sql_becomes_newer(rest: Pair, start: Start, later: Version) -> None:
    """Under load, both sides: not one turn fails, no writer fails, every row arrives; then an old daemon starts on it."""
    outboxd = streaming(start(rest.settings))
    writer = Writer(rest.source.dsn, 100.0, seed=1)
    writer.start()
    try:
        wait_until(lambda: rest.mirrored() > 5)
        for side in SIDES:
            assert f"applied {newest(side) + 1:04}_later" in later.run(
                {**rest.settings, "target_dsn": rest.target.dsn}, "setup", side
            )
            upgraded = writer.committed
            wait_until(lambda was=upgraded: writer.committed > was + 50)  # type: ignore[misc]
    finally:
        writer.stop()
    rest.arrives(60)
    assert writer.failure is None
    assert outboxd.returncode is None
    assert [line for line in outboxd.said() if line["event"] in {"turn_failed", "daemon_failed", "listener_lost"}] == []
    assert outboxd.stop() == 0
    streaming(start(rest.settings))
    rest.write(STORIES, 3)
    rest.arrives()


def test_an_old_doctor_on_newer_sql_warns_and_changes_nothing(direct: Pair, later: Version) -> None:
    """What runs is told to be fine; what would write the schema is refused with the way on. The daemon's role has got
    what is new: nobody has to remember --role."""
    outboxd = Cli(direct.settings)
    assert outboxd("setup", "source", "--role").code == 0
    for side in SIDES:
        later.run(direct.settings, "setup", side)
    with direct.source.connect() as conn:
        may = conn.execute("select has_table_privilege('outboxd', 'outbox.later', 'select')").fetchone()
        conn.execute("drop owned by outboxd; drop role outboxd")
    assert may == (True,)
    found = outboxd.found()
    for side in SIDES:
        assert found[f"{side} schema"]["level"] == "WARN"
        assert (
            f"migration {newest(side) + 1} is newer than this outboxd ({newest(side)})"
            in found[f"{side} schema"]["what"]
        )
        refused = outboxd("setup", side)
        assert (refused.code, "install the newer outboxd" in refused.err) == (1, True)
        refused = outboxd("uninstall", side, "--yes")
        assert (refused.code, "uninstall with the newer outboxd" in refused.err) == (1, True)


@pytest.mark.parametrize("side", SIDES)
def test_a_new_daemon_waits_for_the_sql_and_goes_on_by_itself(
    direct: Pair, start: Start, later: Version, side: Side
) -> None:
    """No crash, no hot loop, nothing applied; the very command is named, and once it has run all of it arrives."""
    other: Side = "target" if side == "source" else "source"
    later.run(direct.settings, "setup", other)
    outboxd = start(direct.settings, environment=later.environment)
    paused(
        outboxd, f"schema {SCHEMA[side]} is at migration {newest(side)}, this outboxd needs {newest(side) + 1}",
        f"run `outboxd setup {side}` with this version; it goes on by itself",
    )  # fmt: skip
    direct.write(STORIES, 4)
    wait_until(lambda: (outboxd.status() or {}).get("backlog_changes") == 4)
    assert direct.mirrored() == 0
    assert outboxd.get("/readyz")[0] == 503
    assert outboxd.get("/livez")[0] == 200
    failed = [line for line in outboxd.said() if line["event"] == "turn_failed"]
    assert 1 <= len(failed) <= 8, "a wait that doubles"
    later.run(direct.settings, "setup", side)
    direct.arrives(60)
    assert streaming(outboxd).returncode is None


@pytest.mark.parametrize("side", SIDES)
def test_sql_that_lacks_the_last_migration_is_waited_for(direct: Pair, start: Start, side: Side) -> None:
    """As an older version really left it: the functions and tables of the last migration are not there at all."""
    database, known = (direct.source if side == "source" else direct.target), migrations(side)
    with database.connect() as conn:
        conn.execute(f"drop schema {SCHEMA[side]} cascade")
        for each in known[:-1]:
            conn.execute(each.sql)
            conn.execute(
                f"insert into {SCHEMA[side]}.migration (version, name, checksum) values (%s, %s, %s)",
                (each.version, each.name, each.checksum),
            )
    outboxd = start(direct.settings)
    paused(outboxd, f"`outboxd setup {side}`")
    assert Cli(direct.settings)("setup", side).code == 0
    tables = ('"Story"', '"Scenario"', '"Prompt"', '"VideoAsset"')
    for table in tables:
        assert Cli(direct.settings)("watch", table).code == 0
    direct.write(STORIES, 3)
    wait_until(lambda: direct.mirrored() == 3, 60)
    assert streaming(outboxd).returncode is None


def test_setup_makes_nobody_wait_behind_it(direct: Pair, later: Version) -> None:
    """A writer that sits in its transaction: the upgrade steps back again and again, others write on; then it is done."""
    writer = Writer(direct.source.dsn, 100.0, seed=2)
    with direct.source.connect(autocommit=False) as holder:
        holder.execute("""insert into "Story" ("id", "title", "updatedAt") values (gen_random_uuid(), 'held', now())""")
        writer.start()
        upgrading = subprocess.Popen(
            [sys.executable, "-P", "-m", "daemon", "setup", "source"], cwd=later.folder,
            env={**os.environ, "OUTBOXD_SOURCE_DSN": direct.source.dsn, **later.environment},
        )  # fmt: skip
        try:
            for _ in range(2):
                wait_until(lambda: direct.ask(direct.source, _QUEUED) == [(True,)], 60)
                was = writer.committed
                wait_until(lambda was=was: writer.committed > was + 30, 60)  # type: ignore[misc]
            assert upgrading.poll() is None
        finally:
            holder.rollback()
            writer.stop()
            code = upgrading.wait(60)
    assert (code, writer.failure) == (0, None)
