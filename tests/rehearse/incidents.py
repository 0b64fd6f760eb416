"""What may go wrong, one incident for the alerts it must raise: brought about inside, mended as the runbook says on the
way out.

Knows the stage and how to hurt it. Must not know how long anything takes.
"""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from daemon.demo.faults import Fault
from daemon.demo.keys import ApiKeys
from outbox.migrations import migrate
from tests.databases import Database
from tests.rehearse.stage import Stage, connect, until
from tests.rehearse.unequal import row_added, rows_deleted, rows_unreadable

Alert = tuple[str, str]


@dataclass(frozen=True)
class Incident:
    """`fix`: what the runbook has a person do, in a few words."""

    alerts: Sequence[Alert]
    cause: str
    fix: str
    happens: Callable[[Stage], AbstractContextManager[None]]


@contextmanager
def _target_stops(stage: Stage) -> Iterator[None]:
    stage.target.stop()
    try:
        yield
    finally:
        stage.target.start()


@contextmanager
def _source_stops(stage: Stage) -> Iterator[None]:
    stage.source.stop()
    try:
        yield
    finally:
        stage.source.start()


@contextmanager
def _both_stop(stage: Stage) -> Iterator[None]:
    """The source first: what stops then is only noticed by whoever asks."""
    stage.source.stop()
    stage.target.stop()
    try:
        yield
    finally:
        stage.source.start()
        stage.target.start()


@contextmanager
def _late(stage: Stage, seconds: float) -> Iterator[None]:
    stage.supabase.gateway.fault = Fault.delay(seconds, path="rpc/outboxd")
    try:
        yield
    finally:
        stage.supabase.gateway.fault = None


@contextmanager
def _key_revoked(stage: Stage) -> Iterator[None]:
    new = ApiKeys(stage.supabase.keys.jwt_secret)
    stage.supabase.gateway.keys = stage.supabase.keys = new
    try:
        yield
    finally:
        stage.write_key(new.secret)
        for one in stage.daemons:
            one.send(signal.SIGHUP)


@contextmanager
def _table_dropped(stage: Stage) -> Iterator[None]:
    with connect(stage.project) as conn:
        conn.execute('drop table "VideoAsset"')
    try:
        yield
    finally:
        # Of this table alone: who may see the others is in no file here, and is not taken away unasked.
        stage.outboxd("schema", "apply", "--yes", 'public."VideoAsset"')


@contextmanager
def _triggers_asleep(stage: Stage) -> Iterator[None]:
    """As a restore leaves them that was cut off. What the application writes meanwhile comes over after the fix alone."""
    with connect(stage.app) as conn:
        conn.execute('alter table "VideoAsset" disable trigger user')
    try:
        yield
    finally:
        written = _assets(stage.app)
        stage.outboxd("watch", 'public."VideoAsset"')
        if not until(lambda: not written & _assets(stage.app) - _assets(stage.project), 60):
            raise RuntimeError("what was written while the triggers slept does not come over")


def _assets(database: Database) -> set[str]:
    with connect(database) as conn:
        return {key for (key,) in conn.execute('select "id"::text from "VideoAsset"')}


@contextmanager
def _rows_refused(stage: Stage) -> Iterator[None]:
    with connect(stage.project) as conn:
        conn.execute("""alter table "Scenario" add constraint no_failures check ("status" <> 'FAILED') not valid""")
        try:
            yield
        finally:
            conn.execute('alter table "Scenario" drop constraint no_failures')
            for _ in range(5):  # a batch that was refused before has its letters later than one asks
                stage.outboxd("dead-letters", "retry", "--all")
                if until(lambda: _status(stage).get("held_keys") == 0, 5):
                    break


def _status(stage: Stage) -> Mapping[str, object]:
    """The leader's."""
    leader = stage.leader()
    return (leader.status() if leader else None) or {}


@contextmanager
def _transaction_forgotten(stage: Stage) -> Iterator[None]:
    with connect(stage.app) as forgotten, connect(stage.app) as conn:
        forgotten.execute('begin; select count(*) from "Story"')
        try:
            yield
        finally:
            conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                " and xact_start < now() - interval '3 seconds' and application_name not like 'outboxd%'"
                " and pid <> pg_backend_pid()"
            )


@contextmanager
def _dump_that_never_ends(stage: Stage) -> Iterator[None]:
    """It holds what a dump holds: no slot can be emptied. Meanwhile much is written."""
    with connect(stage.app) as dump, connect(stage.app) as conn:
        dump.execute("begin; lock table outbox.change in access share mode")
        conn.execute(
            'insert into "Story" ("id", "title", "updatedAt") select gen_random_uuid(),'
            " (select string_agg(md5(random()::text || n || i), '') from generate_series(1, 200) n), now()"
            " from generate_series(1, 6000) i"
        )
        try:
            yield
        finally:
            conn.execute("select pg_terminate_backend(%s)", (dump.info.backend_pid,))


@contextmanager
def _killed_again_and_again(stage: Stage) -> Iterator[None]:
    """As where there is not memory enough: started, and killed again as soon as it has been seen."""
    one = stage.standby()
    started = f'process_start_time_seconds{{instance="127.0.0.1:{one.port}"}}'
    for _ in range(3):
        before = stage.prometheus.value(started)
        one.kill()
        until(lambda before=before: stage.prometheus.value(started) not in (None, before), 30)  # type: ignore[misc]
    yield


@contextmanager
def _all_ended(stage: Stage) -> Iterator[None]:
    with stage.nobody_restarts():
        for one in stage.daemons:
            one.kill()
        yield


@contextmanager
def _standby_frozen(stage: Stage) -> Iterator[None]:
    frozen = stage.standby()
    frozen.send(signal.SIGSTOP)
    try:
        yield
    finally:
        frozen.kill()


@contextmanager
def _two_relays_in_one_job(stage: Stage) -> Iterator[None]:
    """Another application's daemon is scraped as if it stood by for this one.

    Two that really lead one source at once cannot be had for long: the lock lets one in, and behind a pooler, where
    there is no lock, each batch of one fences the other off within milliseconds.
    """
    other = Database(stage.source, "other_app", "postgres")
    stage.source.create_database(other.name)
    with other.connect(autocommit=False) as conn:
        migrate(conn, "source")
    own = [f"127.0.0.1:{one.port}" for one in stage.daemons]
    with ExitStack() as stack:
        outboxd = stage.daemon("outboxd-other", other, relay="other")
        stack.callback(outboxd.stop)
        outboxd.start()
        its = f"127.0.0.1:{outboxd.port}"
        stage.prometheus.scrape({"outboxd": [*own, its]})
        try:
            yield
        finally:
            stage.prometheus.scrape({"outboxd": own, "outboxd-other": [its]})
            until(lambda: ("OutboxdTwoLeaders", "critical") not in stage.prometheus.firing(), 30)
            stage.prometheus.scrape({"outboxd": own})


INCIDENTS: Sequence[Incident] = (
    Incident(
        [
            ("OutboxdBreakerOpen", "critical"), ("OutboxdLag", "warning"), ("OutboxdLagCritical", "critical"),
            ("OutboxdHeartbeatMissing", "critical"), ("OutboxdFailures", "warning"),
        ],
        "the project's database stops", "start it (restore the paused project)", _target_stops,
    ),
    Incident(
        [("OutboxdNoLeader", "critical"), ("OutboxdListenerDown", "warning")],
        "the source stops", "start it", _source_stops,
    ),
    Incident(
        [("OutboxdBothStoresUnreachable", "critical")],
        "both stop, the source first", "start the source, then the target", _both_stop,
    ),
    Incident(
        [("OutboxdDisabled", "warning"), ("OutboxdStalled", "critical")],
        "the key is revoked", "write the new key, reload (SIGHUP)", _key_revoked,
    ),
    Incident([("OutboxdTargetSlow", "warning")], "answers take 0.8 s", "the gateway is quick again", lambda stage: _late(stage, 0.8)),
    Incident(
        [("OutboxdFreshnessBurning", "critical"), ("OutboxdFreshnessBurning", "warning")],
        "answers take 3.2 s", "the gateway is quick again", lambda stage: _late(stage, 3.2),
    ),
    Incident([("OutboxdTableOut", "warning")], "a table is dropped on the target", "outboxd schema apply --yes", _table_dropped),
    Incident(
        [("OutboxdUncaptured", "warning")],
        "a table's triggers are disabled on the source", "outboxd watch", _triggers_asleep,
    ),
    Incident(
        [("OutboxdDeadLetters", "warning")],
        "a constraint on the target refuses rows", "drop it, outboxd dead-letters retry --all", _rows_refused,
    ),
    Incident(
        [("OutboxdRowsDifferCritical", "critical"), ("OutboxdRowsDiffer", "warning")],
        "somebody deletes rows on the target, a third", "outboxd verify --repair", rows_deleted,
    ),
    Incident(
        [("OutboxdRowsDiffer", "warning")], "somebody adds a row on the target", "outboxd verify --repair", row_added,
    ),
    Incident(
        [("OutboxdVerificationStale", "warning")],
        "what reads a table's rows is dropped", "outboxd watch", rows_unreadable,
    ),
    Incident(
        [("OutboxdLongTransaction", "warning")],
        "a session forgets its transaction", "pg_terminate_backend of it", _transaction_forgotten,
    ),
    Incident(
        [("OutboxdOutboxGrowing", "warning")],
        "a dump holds the outbox's slots, 40 MB are written", "pg_terminate_backend of the dump", _dump_that_never_ends,
    ),
    Incident([("OutboxdDown", "critical")], "both daemons are killed, none is started", "systemctl start outboxd", _all_ended),
    Incident([("OutboxdDown", "warning")], "the standby freezes (SIGSTOP)", "systemctl kill -s KILL outboxd", _standby_frozen),
    Incident([("OutboxdRestarting", "warning")], "kill -9, three times in a row", "nobody kills it", _killed_again_and_again),
    Incident(
        [("OutboxdTwoLeaders", "critical")],
        "another source's daemon is scraped in this job", "it gets a job of its own", _two_relays_in_one_job,
    ),
)  # fmt: skip
