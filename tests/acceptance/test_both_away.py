"""Both stores are away: the daemon knows it of each, although it has nothing to send."""

from daemon.demo.supabase import EmbeddedSupabase
from tests.acceptance.conftest import STORIES, Pair, Start, measured, streaming, wait_until
from tests.forwarding import forwarded

_CLOSED = 'outboxd_breaker_state{breaker="target",state="closed"}'
_END = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and application_name like 'outboxd%%'"


def test_a_target_that_leaves_while_the_source_is_away_is_noticed(
    rest: Pair, supabase: EmbeddedSupabase, start: Start
) -> None:
    """The source first: no batch shows how the target does, so it is asked. Then both come back, and all arrives."""
    with forwarded(rest.source.cluster.port) as way:
        dsn = f"postgresql://{rest.source.owner}@127.0.0.1:{way.port}/{rest.source.name}"
        outboxd = streaming(start({**rest.settings, "source_dsn": dsn}))
        rest.write(STORIES, 2)
        rest.arrives()
        way.closed = True
        rest.ask(rest.source, _END, rest.source.name)
        wait_until(lambda: measured(outboxd, "outboxd_listener_connected") == 0)
        assert (outboxd.status() or {})["mode"] == "full"
        supabase.stop_postgrest()
        wait_until(lambda: measured(outboxd, _CLOSED) == 0, 60)
        assert (outboxd.status() or {})["mode"] == "degraded"
        rest.write(STORIES, 3)
        supabase.start_postgrest()
        wait_until(lambda: measured(outboxd, _CLOSED) == 1, 60)
        way.closed = False
        rest.arrives()
        assert outboxd.returncode is None
