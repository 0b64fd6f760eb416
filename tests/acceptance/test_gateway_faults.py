"""Whatever a gateway does: few requests, few log lines, the truth on every page, nothing lost, nothing told."""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

from daemon.demo.child import Outboxd
from daemon.demo.faults import Fault
from daemon.demo.gateway import Gateway
from daemon.demo.keys import ApiKeys
from daemon.demo.supabase import EmbeddedSupabase
from tests.acceptance.conftest import QUICK, STORIES, Pair, Start, measured, streaming, wait_until
from tests.certificates import Authority
from tests.databases import Database

HTML = b"<!DOCTYPE html><title>canary: welcome to the hotel</title>"
CANARY = "canary"
CANARIES = STORIES.replace("'story '", f"'{CANARY} '")

_OPENED = 'outboxd_breaker_transitions_total{breaker="target",to="open"}'


@dataclass
class Watch:
    """A fault while it lasts: what the gateway is asked, what the log says, what the pages say."""

    outboxd: Outboxd
    gateway: Gateway
    kind: str
    _log: list[Mapping[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outboxd.said()
        self.gateway.requests.clear()
        self.began = time.monotonic()
        self.retries = self._retries()

    def _retries(self) -> float:
        return measured(self.outboxd, f'outboxd_retries_total{{reason="{self.kind}"}}')

    def shows(self, state: str, times: int, *words: str) -> None:
        """Within seconds the status names the fault; after some more attempts it still does, in bounds."""
        wait_until(lambda: (self.outboxd.status() or {}).get("problem_kind") == self.kind)
        wait_until(lambda: self._retries() >= self.retries + times, 60)
        status = self.outboxd.status() or {}
        assert (status["state"], status["problem_kind"]) == (state, self.kind)
        assert all(word in status["problem"] for word in words), status["problem"]
        assert self.outboxd.get("/readyz")[0] == (503 if state == "paused" else 200)
        assert self.outboxd.get("/livez")[0] == 200
        self.bounded()

    def bounded(self) -> None:
        """Requests a second and log lines a second, from the beginning of the fault."""
        seconds = time.monotonic() - self.began
        assert len(self.gateway.requests) <= 6 + 6 * seconds
        self._log += self.outboxd.said()
        assert len(self._log) <= 12 + 18 * seconds, self._log[-5:]
        assert not [line for line in self._log if line["event"] in {"fault", "relay_failed"}]

    def cleared(self, pair: Pair) -> None:
        """Within seconds of its end, too, and everything is there."""
        wait_until(lambda: (self.outboxd.status() or {}).get("problem", "") is None)
        pair.arrives()
        wait_until(lambda: (self.outboxd.status() or {}).get("verdict") == "in sync: nothing needs you")
        assert self.outboxd.get("/readyz")[0] == 200


@contextmanager
def silent(outboxd: Outboxd, *secrets: str) -> Iterator[None]:
    """No key and no row value in the log, the status or the metrics."""
    yield
    said = outboxd.log.read_text(errors="replace") + outboxd.get("/api/status")[1] + outboxd.get("/metrics")[1]
    for each in (*secrets, CANARY):
        assert each not in said


GROUPS = {
    "it may pass": {
        "500": (Fault.status(500, HTML), "transient", "500"),
        "503, soon back": (Fault.status(503, HTML, [("Retry-After", "1")]), "transient", "503"),
        "520": (Fault.status(520, HTML), "transient", "520"),
        "530": (Fault.status(530, HTML), "transient", "530"),
        "544": (Fault.status(544, b'{"code":"544","message":"canary"}'), "transient", "544"),
        "too many requests": (Fault.status(429, HTML, [("Retry-After", "1")]), "throttle", "asks for a pause"),
    },
    "no answer": {
        "captive portal": (Fault.status(200, HTML), "ambiguous", "not one of outboxd's"),
        "captive portal, after the commit": (Fault.instead(200, HTML), "ambiguous", "asked where it stands"),
        "truncated JSON": (Fault.instead(200, b'{"answer":"app'), "ambiguous", "not one of outboxd's"),
        "no content": (Fault.status(204), "ambiguous", "204"),
        "redirect": (Fault.status(307, HTML, [("Location", "https://login.example/")]), "ambiguous", "redirect"),
        "reset": (Fault.reset(), "ambiguous", "before the answer"),
        "closed at once": (Fault.refuse(), "ambiguous", "before the answer"),
    },
    "for a person": {
        "over quota": (Fault.status(402, HTML), "auth", "quota"),
        "forbidden": (Fault.status(403, HTML), "auth", "network restrictions"),
        "no Data API": (Fault.status(404, HTML), "contract", "OUTBOXD_SUPABASE_URL"),
    },
}  # fmt: skip


@pytest.mark.parametrize("group", GROUPS)
def test_a_gateways_faults(rest: Pair, supabase: EmbeddedSupabase, start: Start, group: str) -> None:
    """One after the other, each with rows that wait meanwhile."""
    outboxd = streaming(start(rest.settings))
    paused = group == "for a person"
    with silent(outboxd, supabase.secret_key):
        for fault, kind, words in GROUPS[group].values():
            opened = measured(outboxd, _OPENED)
            watch = Watch(outboxd, supabase.gateway, kind)
            supabase.gateway.fault = fault
            rest.write(CANARIES, 3)
            watch.shows("paused" if paused else "catching_up", 2 if paused else 4, words)
            counted = kind in {"transient", "ambiguous"}
            assert (measured(outboxd, _OPENED) > opened) is counted
            supabase.gateway.fault = None
            watch.cleared(rest)
    assert rest.mirrored() == 3 * len(GROUPS[group])


LONG = {
    "a paused project": (Fault.status(540, HTML), "transient", "Restore project"),
    "a year of Retry-After": (Fault.status(429, HTML, [("Retry-After", "31536000")]), "throttle", "asks for a pause"),
}


@pytest.mark.parametrize("why", LONG)
def test_a_long_pause(rest: Pair, supabase: EmbeddedSupabase, start: Start, why: str) -> None:
    """The gateway is left alone, the pages say why, and the process still stops at once."""
    fault, kind, words = LONG[why]
    outboxd = streaming(start(rest.settings))
    with silent(outboxd, supabase.secret_key):
        watch = Watch(outboxd, supabase.gateway, kind)
        supabase.gateway.fault = fault
        rest.write(CANARIES, 3)
        watch.shows("catching_up", 1, words)
        wait_until(lambda: measured(outboxd, "outboxd_lag_seconds") > 4)
        assert len(supabase.gateway.requests) <= 2
    assert outboxd.stop() == 0
    supabase.gateway.fault = None
    streaming(start(rest.settings))
    rest.arrives()


class Expired(ApiKeys):
    """Whose service_role token was good once."""

    @cached_property
    def service_jwt(self) -> str:
        return self.mint(role="service_role", seconds=-60)


@pytest.mark.parametrize("how", ["expired", "signed with another secret", "revoked"])
def test_a_key_that_is_good_no_longer(rest: Pair, supabase: EmbeddedSupabase, start: Start, how: str) -> None:
    """Paused, not broken: the breaker stays closed, nothing is put aside, and a key that is good again is enough."""
    good = supabase.keys
    outboxd = streaming(start(rest.settings))
    rest.write(CANARIES, 3)
    rest.arrives()
    watch = Watch(outboxd, supabase.gateway, "auth")
    with silent(outboxd, supabase.secret_key, supabase.service_jwt):
        if how == "expired":
            supabase.gateway.keys = Expired(good.jwt_secret, good.secret)
        elif how == "revoked":
            supabase.gateway.keys = ApiKeys()
        else:
            supabase.gateway.keys = ApiKeys(secret=good.secret)  # which signs otherwise than PostgREST expects
        rest.write(CANARIES, 3)
        watch.shows("paused", 3, "401", "OUTBOXD_SUPABASE_KEY", "looked at again by itself")
        assert len(supabase.gateway.requests) <= 1 + 2 * (3 + 1)  # 1, 2, 4 … seconds apart
        assert measured(outboxd, _OPENED) == 0
        assert rest.mirrored() == 3
        supabase.gateway.keys = good
        watch.cleared(rest)
        assert measured(outboxd, _OPENED) == 0
    assert rest.mirrored() == 6


def test_a_target_that_cannot_prove_who_it_is(
    app: Database, mirror: Database, supabase: EmbeddedSupabase, start: Start, tmp_path: Path
) -> None:
    """Nobody known vouches for its certificate: not a single request, and no storm of handshakes."""
    gateway = Gateway(supabase.gateway.upstream_port, supabase.keys, Authority.create(tmp_path).server())
    gateway.start()
    try:
        way = {"supabase_url": gateway.url, "supabase_key": supabase.secret_key}
        with closing(Pair(app, mirror, {"source_dsn": app.dsn, **way, **QUICK})) as pair:
            outboxd = start(pair.settings)
            wait_until(lambda: (outboxd.status() or {}).get("problem_kind") == "auth")
            pair.write(CANARIES, 3)
            with silent(outboxd, supabase.secret_key):
                watch = Watch(outboxd, gateway, "auth")
                watch.shows("paused", 2, "certificate", "openssl s_client")
            assert not gateway.requests
            assert pair.mirrored() == 0
    finally:
        gateway.stop()


def test_postgrest_that_does_not_know_the_door(rest: Pair, supabase: EmbeddedSupabase, start: Start) -> None:
    """Its picture of the schema is old, or the function is gone: named, looked at again, and gone on from alone."""
    outboxd = streaming(start(rest.settings))
    with silent(outboxd, supabase.secret_key):
        watch = Watch(outboxd, supabase.gateway, "contract")
        with rest.target.connect() as conn:
            conn.execute("alter function public.outboxd(text) rename to elsewhere")
            conn.execute("notify pgrst, 'reload schema'")
        wait_until(lambda: watch.outboxd.status() is not None)
        rest.write(CANARIES, 3)
        watch.shows("paused", 2, "outboxd setup target")
        with rest.target.connect() as conn:
            conn.execute("alter function public.elsewhere(text) rename to outboxd")
            conn.execute("notify pgrst, 'reload schema'")
        watch.cleared(rest)


def test_a_target_database_that_crashes_under_a_batch(rest: Pair, start: Start) -> None:
    """Its Postgres dies while it applies: all of the batch or none of it, and everything in the end."""
    outboxd = streaming(start(rest.settings))
    rest.write(CANARIES, 3)
    rest.arrives()
    holder = rest.target.connect(autocommit=False)
    holder.execute('lock table "Story" in access exclusive mode')
    rest.write(CANARIES, 500)
    waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    wait_until(lambda: rest.ask(rest.target, waiting)[0][0] >= 1)
    rest.target.cluster.stop("immediate")
    holder.close()
    rest.close()
    rest.target.cluster.start()
    wait_until(lambda: rest.mirrored() in {3, 503})
    rest.arrives(60)
    assert rest.mirrored() == 503
    assert outboxd.returncode is None
